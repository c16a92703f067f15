"""A page to try a model: `python -m cssr.demo EXPORT`, then open the address that it prints."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.handle_signals()

import argparse
import asyncio
import ipaddress
import logging
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Any

from cssr.config.schema import check_tile
from cssr.demo.connections import protocol
from cssr.demo.jobs import Limits
from cssr.utils.cli import ExitingParser, exit_on_error, program

CONNECTIONS = 64  # open at once; further ones get 503


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = _parser().parse_args(arguments)
    with exit_on_error():
        _check(options)
        app = _app(options)
        listener = listen(options.host, options.port)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    if not is_loopback(options.host):
        print(
            f"warning: --host {options.host}: whoever reaches this machine can send photographs, without a password "
            "and in clear text; 127.0.0.1 and `ssh -L` keep the page to yourself",
            file=sys.stderr,
        )
    print(f"{options.model} at {address} (Ctrl-C ends it)", flush=True)
    if options.open:
        webbrowser.open(address)
    serve(app, listener)


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers out of range before the model is loaded."""
    check_tile(options.tile, "--tile")
    for name in ("max_megabytes", "max_megapixels", "seconds"):
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} must be a number above 0, got {getattr(options, name):g}")
    if options.waiting < 0:
        raise ValueError(f"--waiting must be 0 or more, got {options.waiting}")
    if not 0 <= options.port < 65536:
        raise ValueError(f"--port must be in 0..65535, got {options.port}")


def _app(options: argparse.Namespace) -> Any:
    try:
        import uvicorn  # noqa: F401

        from cssr.demo.server import create_app
    except ImportError as error:
        raise ValueError(f"the page needs {error.name}, which is not installed: pip install 'cssr[demo]'") from None
    from cssr.inference.predictor import device_named
    from cssr.models.inference_form import for_inference
    from cssr.models.load import load_model  # here, as it takes seconds, after mistakes have been reported

    limits = Limits(
        bytes=round(options.max_megabytes * 1e6),
        pixels=round(options.max_megapixels * 1e6),
        seconds=options.seconds,
        waiting=options.waiting,
        tile=options.tile,
    )
    model = for_inference(load_model(options.model, options.checkpoint).to(device_named(options.device)))
    names = () if is_loopback(options.host) else (options.host, socket.gethostname())
    return create_app(model, limits, options.model.resolve().name, names)


def is_loopback(host: str) -> bool:
    """Return whether an address or name leads to this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free one. ValueError where it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port} cannot be opened ({error.strerror}): choose another") from None


def server(app: Any) -> Any:
    """The uvicorn server of an application; it logs no requests and trusts no proxy's headers."""
    import uvicorn

    quiet = {"access_log": False, "log_level": "warning", "server_header": False, "proxy_headers": False}
    bare = {"http": protocol(), "ws": "none", "lifespan": "off"}
    limits = {"limit_concurrency": CONNECTIONS, "timeout_graceful_shutdown": 2}
    config = uvicorn.Config(app, **quiet, **bare, **limits)
    logging.getLogger("uvicorn.error").addFilter(_is_logged)
    return uvicorn.Server(config)


def _is_logged(record: logging.LogRecord) -> bool:
    """Leave out the tracebacks of requests that were cut off as the server ended, which are no errors."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def serve(app: Any, listener: socket.socket) -> None:
    """Answer until Ctrl-C."""
    try:
        server(app).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        app.state.queue.close()
        listener.close()


def _parser() -> argparse.ArgumentParser:
    parser = ExitingParser(prog=program("python -m cssr.demo"), description=__doc__.splitlines()[0])
    model = "run, export, or model of the package (small-x4)"
    parser.add_argument("model", type=Path, nargs="?", default=Path("small-x4"), help=model)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (7860; 0: a free one)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    defaults, million = Limits(), 1e6
    bounds = {
        "--max-megabytes": (float, defaults.bytes / million, "of a photograph's file"),
        "--max-megapixels": (float, defaults.pixels / million, "of a photograph"),
        "--seconds": (float, defaults.seconds, "that work on a photograph may take"),
        "--waiting": (int, defaults.waiting, "photographs that may wait while one is worked on"),
        "--tile": (int, defaults.tile, "photograph pixels a side of a tile; 0: the whole at once"),
    }
    for name, (kind, default, text) in bounds.items():
        parser.add_argument(name, type=kind, default=default, help=f"{text} ({default:g})")
    parser.add_argument("--checkpoint", default="export", help="of a run: export (default), best, last, or a step")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (auto: an accelerator where there is one)")
    return parser


if __name__ == "__main__":
    sys.exit(interrupts.run(main))

"""Evaluate crackpot 2.0, a tool from outside, by this toolkit's own measures on its frozen test sets.

    pip install --no-deps crackpot==2.0 && pip install keras
    KERAS_BACKEND=torch python docs/outside_tool.py data/benchmarks/SET/BLUR --out runs/real/results/crackpot/NAME

The network in crackpot's package (Keras, MIT) takes 256 x 256 pixels; as in crackpot the photograph is reduced to that
and the result enlarged by repeating pixels. `--full` gives it the HR image, else it is given the LQ image enlarged x4.
"""

import argparse
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cssr.data.batch import Batch, Outputs
from cssr.data.loader import eval_stream
from cssr.data.shards import open_sets
from cssr.evaluation.evaluator import measure
from cssr.evaluation.results import compose

SIDE = 256  # pixels that the network takes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="frozen test set")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--full", action="store_true", help="the HR image instead of the LQ image enlarged")
    options = parser.parse_args(arguments)
    network, rows = load_network(), []
    for batch in eval_stream(open_sets(options.data, "data"), 4, 1, 0):
        batch = batch.to("cpu")
        image = batch.hr if options.full else F.interpolate(batch.lq, scale_factor=4, mode="bicubic").clamp(0, 1)
        rows += measure(batch, outputs_of(network, image, batch), distances=True)
    facts = {"name": "crackpot 2.0", "data": options.data, "scale": 4, "full": options.full}
    facts |= {"benchmark": None, "model_settings": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(compose(rows, facts), indent=1))


def load_network():
    """The Keras model in crackpot's package, without importing the package, which opens windows."""
    import keras

    path = Path(find_spec("crackpot").submodule_search_locations[0], "resources", "model", "my_model.keras")
    return keras.models.load_model(path, compile=False)


def outputs_of(network, image: Tensor, batch: Batch) -> Outputs:
    """The network's probabilities of one image (1 3 H W, 0..1), as outputs of ours."""
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA) / 255
    prob = np.squeeze(np.asarray(network.predict(small[None], verbose=0)))
    height, width = batch.mask.shape[-2:]
    prob = cv2.resize(prob.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    logits = torch.from_numpy(prob).clamp(1e-6, 1 - 1e-6).logit()[None, None]
    return Outputs(sr=image, logits=logits)


if __name__ == "__main__":
    main()

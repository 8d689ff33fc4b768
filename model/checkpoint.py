"""Our own checkpoint of a network: a folder with `config.json` and `model.safetensors`."""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from model.network import NetworkConfig, Sana

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def save_network(network: Sana, folder: Path) -> None:
    """Write configuration and weights into an existing folder. The same network gives the same bytes."""
    config = json.dumps(dataclasses.asdict(network.config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(config, encoding="utf-8")
    # safetensors stores contiguous tensors alone.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def load_network(folder: Path, device: str = "cpu") -> Sana:
    """The network of a checkpoint folder.

    Raises ValueError that names the folder if a file is missing, or if configuration and weights do not fit.
    """
    folder = Path(folder)
    try:
        config = NetworkConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        network = Sana(config)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise ValueError(f"{folder} is no checkpoint: it needs {CONFIG} and {WEIGHTS}") from None
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} does not fit the network: {' '.join(str(error).split())}") from None
    return network.to(device)

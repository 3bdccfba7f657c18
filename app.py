"""A web page to ask for faces: `make app`, or `python app.py --preset demo`.

Serves the newest checkpoint of a run on this machine only, unless --host says otherwise; nothing is
shared or sent anywhere.
"""

import argparse
import errno
import os
import socket
from typing import TYPE_CHECKING

from command_line import command, config_from, parser, stop_at_once, whole

if TYPE_CHECKING:
    from inference.text_to_face import TextToFace
    from models.vae_wrapper import VAEWrapper

LEAST_PORT = 1024  # those below need an administrator


@command
def main() -> None:
    """Serve the newest run of a preset until Ctrl-C."""
    arguments = read_arguments()
    config = config_from(arguments)
    require_port(arguments.host, arguments.port)
    with stop_at_once():  # torch takes seconds to import; a wrong word is answered before that
        from inference.text_to_face import TextToFace
        from models.device import choose_device

        model = TextToFace.from_run(config.run_folder, choose_device(), arguments.changes)
        preview = open_preview(arguments.preview, model) if arguments.preview else None
        # From here on only the page itself is asked whether it is there. gradio would ask by way of
        # HTTP_PROXY, and a SOCKS proxy already ends its import.
        os.environ.update(NO_PROXY="*", no_proxy="*")
        from inference.page import build_page, serve

        page = build_page(model, preview)
    serve(page, arguments.host, arguments.port)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: whoever reaches this machine can use the page",
    )
    options.add_argument("--port", type=whole(1, 65_535), default=7860, help="default: 7860")
    options.add_argument("--preview", help="hub id or folder of a tiny autoencoder for previews")
    return options.parse_args()


def open_preview(name: str, model: "TextToFace") -> "VAEWrapper":
    """A tiny autoencoder, such as `madebyollin/taesd`, for pictures on their way.

    Raises:
        FileNotFoundError: it is not available.
        ValueError: its latents have another shape than the model's.
    """
    from models.vae_wrapper import VAEWrapper

    preview = VAEWrapper.from_pretrained(name).to(model.device)
    have = (preview.latent_channels, preview.downsampling)
    want = (model.vae.latent_channels, model.vae.downsampling)
    if have != want:
        raise ValueError(
            f"--preview {name} has latents of {have[0]} channels over {have[1]} pixels, those of "
            f"preset {model.config.name} have {want[0]} over {want[1]}; use one of the same kind"
        )
    return preview


def require_port(host: str, port: int) -> None:
    """Refuse an address that the page cannot listen on, before the model is opened.

    Raises:
        OSError: the port is taken (names the next free one), or the host is not of this machine.
    """
    refusal = refusal_of(host, port)
    if refusal is None:
        return
    if refusal.errno not in (errno.EADDRINUSE, errno.EACCES):
        raise OSError(
            f"--host {host}: not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all of "
            "its addresses"
        )
    above = range(max(port + 1, LEAST_PORT), 65_536)
    free = next((number for number in above if refusal_of(host, number) is None), None)
    reason = "is in use" if refusal.errno == errno.EADDRINUSE else "needs an administrator"
    raise OSError(f"--port {port} {reason}; the next free one is --port {free} (make: PORT={free})")


def refusal_of(host: str, port: int) -> OSError | None:
    """What the system answers to a server that listens there; None if it may."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        return error
    return None


if __name__ == "__main__":
    main()

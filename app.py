"""A web page to ask for faces: `make app`, or `python app.py --preset demo`.

Serves the weights of a run on this machine only, unless --host says otherwise; nothing is shared
or sent anywhere, and the pictures go when the page ends.
"""

import argparse
import os
import signal
import sys
import tempfile
from types import FrameType

from command_line import add_checkpoint, command, config_from, parser, whole


@command
def main() -> None:
    """Serve the run of a preset until Ctrl-C, or until it is ended in another way."""
    arguments = read_arguments()
    config = config_from(arguments)
    delete_pictures_when_ended()
    with tempfile.TemporaryDirectory(prefix="faces_") as pictures:
        from inference.opening import find_run
        from inference.text_to_face import TextToFace

        run, which = find_run(config), arguments.checkpoint
        model = TextToFace.from_run(run, None, arguments.changes, which)
        # gradio asks by way of HTTP_PROXY whether its own page is there; a SOCKS proxy even ends
        # its import. The hub may be behind that proxy, so models are opened before.
        os.environ.update(NO_PROXY="*", no_proxy="*", GRADIO_TEMP_DIR=pictures)
        try:
            from inference.page import THEME, build_page
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError("the page needs gradio: pip install gradio") from error
        page = build_page(model)
        try:
            page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                share=False,
                ssr_mode=False,
                theme=THEME,
            )
        except OSError as error:  # gradio's for a port that is taken
            raise OSError(f"--host {arguments.host} --port {arguments.port}: {error}") from error


def delete_pictures_when_ended() -> None:
    """Leave by way of SystemExit when the process is ended, or its terminal is closed.

    Does nothing for a signal that is ignored, as under `nohup`.
    """
    names = {"SIGTERM", "SIGHUP"} & set(dir(signal))  # Windows lacks one
    numbers = [getattr(signal, name) for name in names]

    def leave(sent: int, _: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # another one would end the deletion
        sys.exit(128 + sent)

    for number in numbers:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    add_checkpoint(options)
    options.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: whoever reaches this machine can use the page",
    )
    options.add_argument("--port", type=whole(1, 65_535), help="default: a free one from 7860 on")
    return options.parse_args()


if __name__ == "__main__":
    main()

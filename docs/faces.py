"""A figure of generated faces with their captions: `python -m docs.faces out.jpg --preset laptop`.

Captions of test faces that a seed draws, and the seeds 0, 1, 2 and so on: no face is chosen. Only
what the model draws is shown, so the figure may be published.
"""

from pathlib import Path

from command_line import command, config_from, parser
from custom_datasets.opening import open_faces
from files import replacing
from inference.text_to_face import TextToFace
from models.device import choose_device
from plotting import show_images
from pretraining.faces import choose

COUNT, COLUMNS = 24, 6
INCHES = 2.56  # along a side of a face: 256 px


@command
def main() -> None:
    """Draw and save the figure."""
    options = parser(__doc__)
    options.add_argument("out", type=Path, help="a PNG or JPEG")
    arguments = options.parse_args()
    config = config_from(arguments)
    model = TextToFace.from_run(config.run_folder, choose_device(), arguments.changes)
    test = open_faces(config, "test")
    captions = [test.caption(int(position)).text for position in choose(len(test), COUNT)]
    pictures = list(model.generate(captions, range(len(captions))))
    figure = show_images(pictures, captions, columns=COLUMNS, width=INCHES)
    with replacing(arguments.out) as path:
        figure.savefig(path, format=arguments.out.suffix.removeprefix("."), dpi=100)
    print(f"{len(captions)} faces in {arguments.out}")


if __name__ == "__main__":
    main()

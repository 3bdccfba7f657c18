"""Sample latents with a trained run, for `python -m pretraining decoder --sampled`.

`python -m pretraining.latents --preset laptop --count 3000 --out data/laptop_latents.npy` samples
them for captions of training faces, with the run's own settings unless `--set` changes them. A
decoder that has seen them repairs what this diffusion model leaves unfinished.
"""

from command_line import command, config_from, parser, path, whole


@command
def main() -> None:
    """Write the file."""
    options = parser(__doc__)
    options.add_argument("--count", type=whole(1, 10**6), default=3000)
    options.add_argument("--out", type=path, required=True, help="a file, .npy")
    arguments = options.parse_args()
    config = config_from(arguments)
    # torch takes seconds to import: a wrong word is answered before that.
    import numpy as np

    from custom_datasets.opening import open_faces
    from files import replacing
    from inference.opening import find_run
    from inference.text_to_face import TextToFace
    from pretraining.common import choose, sample_latents

    faces = open_faces(config, "train")
    captions = [faces.caption(face).text for face in choose(len(faces), arguments.count).tolist()]
    model = TextToFace.from_run(find_run(config), changes=arguments.changes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sampled = sample_latents(model, captions)
    with replacing(arguments.out) as temporary, temporary.open("wb") as file:
        np.save(file, sampled)  # given a name, it would add ".npy"
    print(f"{len(captions)} latents in {arguments.out}")


if __name__ == "__main__":
    main()

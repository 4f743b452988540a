"""The table of fields, first half: what is learned, from which images, and how."""

from maml_jax.config.rules import (
    ANY,
    FRACTION,
    META_STEPS,
    OPTIONS,
    PATTERN,
    POSITIVE,
    SEED,
    SHARE,
    at_least,
    free,
    one_of,
    one_of_or,
    tied,
)
from maml_jax.data import DATA_SETS
from maml_jax.data.augment import AUGMENTATIONS
from maml_jax.experiment.method import METHODS, PRECONDITIONERS
from maml_jax.meta.rates import KINDS as RATES
from maml_jax.nn.encoders import ENCODERS
from maml_jax.nn.loss import LOSSES
from maml_jax.nn.starts import STARTS

_DATA = one_of_or(one_of(*DATA_SETS), "tfds:NAME of tensorflow-datasets", r"tfds:.+")
# Data sets may be added while a program runs.
_DATA = _DATA._replace(holds=lambda value, listed=_DATA.holds: listed(value) or value in DATA_SETS)
_ENCODER = one_of_or(one_of(*ENCODERS), "package.module:Class of your own", r"\w+(\.\w+)*:\w+")
_COLOUR = one_of_or(one_of("white", "black"), "RRGGBB in hexadecimal", r"[0-9a-fA-F]{6}")

_HEADS = {
    "meta": "its initialisation is learned",
    "zero": "at zero",
    "shared": "one learned vector for every class: UNICORN-MAML",
    "prototypes": "at the class means of the support features: Proto-MAML, without inner steps ProtoNet",
}

FIELDS = (
    tied("seed", 0, SEED, "of initialisation and of every task: tasks are a function of (seed, split, index)"),
    free("debug", False, ANY, "look for NaN after every operation, and report every meta-step: slow"),
    # data
    tied("data.name", "glyphs", _DATA, "the data set; the README says which files each needs"),
    free("data.dir", "", ANY, "folder of the raw files; '' is datasets/NAME, or TFDS's own"),
    free("data.download", True, ANY, "fetch raw files that are missing, where they can be had"),
    free("data.cache_dir", "", ANY, "folder for built stores; '' is the user's cache folder"),
    tied("data.image_size", 28, at_least(16), "side of the images that the model sees, in pixels"),
    tied("data.stored_size", 0, at_least(0), "side of stored images, which augmentation starts from; 0: image_size"),
    free(
        "data.placement",
        "auto",
        one_of(device="images in its memory", host="streamed from disk", auto="device if they fit"),
        "where images are during training and evaluation",
    ),
    free("data.device_share", 0.5, SHARE, "for placement=auto: largest share of the device's memory for images"),
    tied(
        "data.split",
        "",
        ANY,
        "classes of each split, where there is a choice; '' is the first named, or as the files have it. omniglot: "
        "vinyals (1028/172/423 characters) or random (1100/100/423); cub200: closerlook or feat; aircraft, flowers, "
        "dtd: meta_dataset; cars, dogs: dn4; these five, folder and tfds:NAME: random (64/16/20 % of the classes) or a "
        'JSON file {"train": [class names], "val": [...], "test": [...]}; '
        "folder: also images (every class in every split, 64/16/20 % of its images)",
    ),
    tied("data.split_seed", 0, at_least(0), "of random splits, and of the glyphs drawn"),
    tied(
        "data.channels",
        "auto",
        one_of("auto", "1", "3"),
        "of the stored images: 1 is grey, 3 is colour; auto: what the data set is, and a folder is grey if all its "
        "images are",
    ),
    tied("data.background", "white", _COLOUR, "what transparent pixels are laid on"),
    tied(
        "data.class_depth",
        0,
        at_least(0),
        "for folder: how many folders, one in the other, name a class; 0: as the folder plainly has it",
    ),
    tied("data.skip_small", False, ANY, "leave out classes that have fewer images than the tasks need"),
    tied("data.rotations", False, ANY, "in training, classes turned by 90, 180, 270 degrees are classes of their own"),
    tied(
        "data.normalize",
        "none",
        one_of(none="pixels in [0, 1]", imagenet="its mean and deviation", dataset="its own"),
        "what images are normalised by",
    ),
    tied("data.support_augment", "none", one_of(*AUGMENTATIONS), "of support images, in training only"),
    tied("data.query_augment", "none", one_of(*AUGMENTATIONS), "of query images, in training only"),
    # task
    tied("task.way", 5, at_least(1), "classes"),
    tied("task.shot", 1, at_least(1), "support images per class"),
    tied("task.query", 15, at_least(1), "query images per class"),
    # model
    tied("model.encoder", "convnet4", _ENCODER, "the network that makes features"),
    tied("model.options", "", OPTIONS, "hyper-parameters of the encoder's own, if any"),
    tied("model.width", 0, at_least(0), "channels of the first block, the others in proportion; 0: the encoder's own"),
    tied(
        "model.norm",
        "batch",
        ANY,
        "normalisation: batch, episodic, global, ..., see maml_jax/nn/norm.py; by layer: 'block1=global, batch'",
    ),
    tied(
        "model.head",
        "meta",
        one_of(*STARTS, **_HEADS),
        "where the head starts",
    ),
    tied("model.temperature", 1.0, POSITIVE, "factor on the logits"),
    tied("model.learn_temperature", False, ANY, "make it a meta-parameter; the inner loop never adapts it"),
    tied(
        "model.precision",
        "tf32",
        one_of(tf32="on NVIDIA GPUs; float32 elsewhere", float32="", bfloat16="activations"),
        "of the arithmetic",
    ),
    tied(
        "model.piece_mib",
        0,
        at_least(0),
        "MiB of a layer's query images at once, which saves memory and costs time; 0: on a CPU 5 for encoders that "
        "would take much of its memory, else no limit",
    ),
    tied(
        "model.loss",
        "cross_entropy",
        one_of(
            *LOSSES, cross_entropy="mean", summed_cross_entropy="times the ways, as in the official TensorFlow code"
        ),
        "what both loops descend",
    ),
    # inner
    tied("inner.steps", 5, at_least(0), "gradient steps on the support set"),
    tied("inner.encoder_rate", 0.01, at_least(0), "learning rate of the encoder"),
    tied("inner.head_rate", 0.01, at_least(0), "learning rate of the head"),
    tied("inner.momentum", 0.0, FRACTION, "of sgd"),
    tied(
        "inner.optimizer",
        "sgd",
        one_of(sgd="with momentum", rmsprop="", adam=""),
        "the rule of an inner step, with PyTorch's constants",
    ),
    tied("inner.epsilon", 1e-8, at_least(1e-18), "ε of rmsprop and adam, which divide by √(v + ε²)"),
    tied("inner.clip", 0.0, at_least(0), "inner gradients are clipped to [-clip, clip], entry by entry; 0: not at all"),
    tied("inner.weight_decay", 0.0, at_least(0), "times each adapted tensor is added to its gradient"),
    tied("inner.fixed", "", PATTERN, "parameters whose name contains it are meta-learned but do not adapt; '' is none"),
    tied(
        "inner.learn_rates",
        "none",
        one_of("none", *RATES, group="encoder, head", element="Meta-SGD"),
        "learn inner rates, one for each",
    ),
    tied(
        "inner.rates_per_step",
        False,
        ANY,
        "learned rates of their own for each inner step (with learn_rates=tensor: LSLR of MAML++)",
    ),
    tied("inner.positive_rates", False, ANY, "keep learned rates > 0, by learning their logarithms"),
    tied(
        "inner.precondition",
        "none",
        one_of("none", *PRECONDITIONERS, curvature="Meta-Curvature"),
        "learn a linear map of inner gradients",
    ),
    tied(
        "inner.proximal",
        0.0,
        at_least(0),
        "λ of λ/2 ‖θ' − θ‖² beside the support loss, which keeps near the start; 0: none",
    ),
    tied("inner.first_order", False, ANY, "FOMAML: inner gradients are constants to the outer loop"),
    tied(
        "inner.checkpoint",
        "step",
        one_of(none="nothing", step="activations: memory flat in steps", nested="parameters too"),
        "what is computed again on the way back, to save memory",
    ),
    tied("inner.forward_over_reverse", False, ANY, "another way to the same meta-gradient"),
    # outer
    tied(
        "outer.method",
        "maml",
        one_of(*METHODS, maml="and what differs from it in a choice: FOMAML, ANIL, ..."),
        "how the gradient of a task is taken",
    ),
    tied("outer.optimizer", "adam", one_of("adam", "sgd", "rmsprop"), "the rule of a meta-step"),
    free("outer.rate", 1e-3, POSITIVE, "learning rate"),
    tied("outer.momentum", 0.9, FRACTION, "of sgd"),
    tied("outer.weight_decay", 0.0, at_least(0), "times each parameter is added to its meta-gradient"),
    tied("outer.clip", 10.0, at_least(0), "meta-gradients are clipped to [-clip, clip], entry by entry; 0: not at all"),
    tied(
        "outer.multi_step",
        0,
        at_least(0),
        "MAML++: meta-steps until the losses after all inner steps gave way to the last's; 0: off",
    ),
    tied(
        "outer.first_order", 0, at_least(0), "MAML++: first-order meta-steps at the start, before those of second order"
    ),
    tied("outer.cg_steps", 5, at_least(0), "of conjugate gradients, for imaml"),
    free(
        "outer.schedule",
        "constant",
        one_of(constant="", step="times outer.factor at each milestone", cosine="to 0 at train.steps"),
        "how the rate changes",
    ),
    free("outer.milestones", (0,), META_STEPS, "for schedule=step: meta-steps at which the rate falls"),
    free("outer.factor", 0.1, POSITIVE, "for schedule=step: what the rate is multiplied by"),
    free("outer.period", 1, at_least(1), "meta-steps between changes of the rate; 200 is the original's epoch"),
)

"""The table of fields, second half: how long, on which devices, and what is tested."""

from maml_jax.config.rules import ADDRESS, ANY, POSITIVE, Same, at_least, free, one_of, tied
from maml_jax.nn.starts import STARTS
from maml_jax.parallel import BACKENDS

FIELDS = (
    # train
    tied("train.start", "", ANY, "what training starts from: a work directory, an exported model; '' is a fresh start"),
    tied(
        "train.pretrain",
        0,
        at_least(0),
        "steps of supervised training on all classes of the training split before meta-training, which then starts "
        "from its encoder; 0: none",
    ),
    tied(
        "train.pretrain_batch",
        64,
        at_least(2),
        "images normalised together, about so many; a step has train.tasks batches",
    ),
    tied("train.pretrain_rate", 1e-3, POSITIVE, "its learning rate, to 0 by a cosine; all else as outer.*"),
    free("train.steps", 10_000, at_least(0), "meta-steps; tied to the run if schedule=cosine"),
    tied("train.tasks", 4, at_least(1), "tasks per meta-step"),
    tied(
        "train.tasks_at_once",
        0,
        at_least(0),
        "tasks a device takes side by side, a divisor of its share; 0: one on a CPU, else all",
    ),
    free(
        "train.on_nonfinite",
        "stop",
        one_of(stop="and keep the meta-step for `replay`", skip="leave such meta-steps out"),
        "what a number that is infinite or none makes training do",
    ),
    free("train.report_every", 100, at_least(1), "meta-steps between lines of progress, run as one compiled call"),
    free(
        "train.validate_every",
        1000,
        at_least(0),
        "meta-steps between validations, which pick the best checkpoint; 0: never",
    ),
    free("train.validation_tasks", 200, at_least(2), "tasks of the validation split, the same ones every time"),
    free("train.keep", 2, at_least(1), "checkpoints kept to resume from: a damaged one gives way to the one before"),
    free("train.checkpoint_every", 1000, at_least(1), "meta-steps between checkpoints to resume from"),
    # parallel
    free("parallel.backend", "shard_map", one_of(*BACKENDS), "how tasks are spread, with the same result"),
    free(
        "parallel.devices",
        0,
        at_least(0),
        "that share the tasks of a meta-step, a divisor of train.tasks; 0: as many as possible",
    ),
    free(
        "parallel.cpu_devices",
        0,
        at_least(0),
        "without an accelerator, how many devices to make of the CPU; 0: one per core",
    ),
    free("parallel.coordinator", "", ADDRESS, "where several processes meet; 'auto' is for a cluster that JAX knows"),
    free("parallel.processes", 1, at_least(1), "how many there are"),
    free("parallel.process", 0, at_least(0), "which of them this one is, from 0"),
    # eval
    free("eval.split", "test", one_of("test", "val", "train"), "whose classes are tested on"),
    free("eval.tasks", 600, at_least(2), "number of tasks"),
    free("eval.way", Same("task.way"), at_least(1), "classes; another number needs a head that is not model.head=meta"),
    free("eval.shot", Same("task.shot"), at_least(1), "support images per class"),
    free(
        "eval.query", Same("task.query"), at_least(1), "query images per class; accuracy depends on it if transductive"
    ),
    free("eval.steps", Same("inner.steps"), at_least(0), "inner steps at test"),
    free("eval.rate_factor", 1.0, POSITIVE, "factor on the inner rates at test"),
    free(
        "eval.head",
        Same("model.head"),
        one_of(*STARTS),
        "where the head starts at test; shared: after model.head=meta, the mean of its class vectors",
    ),
    free(
        "eval.augment",
        "none",
        one_of(none="", enlarge="scaled to 256/224 of image_size, of which the middle is taken"),
        "of all images",
    ),
    free("eval.checkpoint", "best", one_of(best="by validation", latest=""), "which one is evaluated"),
    free("eval.by_step", False, ANY, "report loss and accuracy after each inner step, too"),
)

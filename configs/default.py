"""Every field there is, with its default. Other configurations start from this one and override what differs.

Set any of them on the command line: --config.inner.steps=10
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of initialisation and of every task; tasks are a function of (seed, split, index)

    c.data = ml_collections.ConfigDict()
    # glyphs (drawn here, no download), sinusoid (regression), omniglot, mini_imagenet, tiered_imagenet, cifar_fs,
    # fc100, cub200, inat2017, folder (class folders or lists of your own), tfds:NAME (any image classification data set
    # of tensorflow-datasets)
    c.data.name = "glyphs"  # which data set; see the README for all of them and the files they need
    c.data.dir = ""  # folder of the raw files; '' is datasets/<name> (cifar100 for cifar_fs and fc100; TFDS's own)
    c.data.download = True  # fetch the raw files if missing: omniglot, cifar_fs, fc100, cub200, tfds:NAME
    c.data.cache_dir = ""  # folder for built stores; '' means the user's cache folder
    c.data.image_size = 28  # side of the images that the model sees in pixels, at least 16
    c.data.stored_size = 0  # side of the images that are stored, which augmentation starts from; 0: image_size
    c.data.placement = "auto"  # device (images in its memory), host (streamed from disk) or auto (device if they fit)
    c.data.device_share = 0.5  # for auto: largest share of the device's memory that the images may take, in (0, 1]
    # omniglot: vinyals (1028/172/423 characters) or random (1100/100/423); cub200: closerlook or feat; folder and
    # tfds:NAME: random (64/16/20 % of the classes) or a JSON file {"train": [class names], "val": [...], "test": [...]}
    c.data.split = ""  # classes of each split, where there is a choice; '' is the first named, or as the files have it
    c.data.split_seed = 0  # of random splits, and of the glyphs drawn
    c.data.rotations = False  # in training, a class turned by 90, 180 or 270 degrees counts as a class of its own
    c.data.normalize = "none"  # none (pixels in [0, 1]), imagenet (its mean and deviation) or dataset (its own)
    c.data.support_augment = "none"  # none, flip, crop, color, resize or enlarge; of support images, in training only
    c.data.query_augment = "none"  # the same choices; of query images, in training only

    c.task = ml_collections.ConfigDict()  # a training episode
    c.task.way = 5  # classes
    c.task.shot = 1  # support images per class
    c.task.query = 15  # query images per class

    c.model = ml_collections.ConfigDict()
    c.model.encoder = "convnet4"  # convnet4, resnet12, resnet18, each also as wide_...; resnet18_standard; mlp
    c.model.width = 0  # channels of the first block, the others in proportion; 0: the encoder's own
    c.model.norm = "batch"  # batch, episodic, global, ...: see maml_jax/nn/norm.py; by layer: 'block1=global, batch'
    c.model.head = "meta"  # meta: the head's initialisation is learned; zero: it starts at zero, any number of ways
    c.model.temperature = 1.0  # factor on the logits, > 0
    c.model.learn_temperature = False  # make it a meta-parameter; the inner loop never adapts it
    c.model.precision = "tf32"  # tf32 (on NVIDIA GPUs; float32 elsewhere), float32, or bfloat16 activations
    c.model.piece_mib = 0  # MiB of a layer's query images at once, to save memory; 0: 5 on a CPU, else no limit
    c.model.loss = "cross_entropy"  # mean; summed_cross_entropy: times the ways, as in the official TensorFlow code

    c.inner = ml_collections.ConfigDict()  # adaptation to one task
    c.inner.steps = 5  # gradient steps on the support set, >= 0
    c.inner.encoder_rate = 0.01  # learning rate of the encoder, >= 0
    c.inner.head_rate = 0.01  # learning rate of the head, >= 0
    c.inner.momentum = 0.0  # of sgd, in [0, 1)
    c.inner.optimizer = "sgd"  # sgd (with momentum), rmsprop or adam, with PyTorch's constants
    c.inner.epsilon = 1e-8  # ε of rmsprop and adam, which divide by √(v + ε²), > 0
    c.inner.weight_decay = 0.0  # added to the gradient of every adapted tensor, >= 0
    c.inner.fixed = ""  # regular expression: parameters whose name contains it are meta-learned but do not adapt
    c.inner.learn_rates = "none"  # none, or a learned rate per group (encoder, head), tensor, or element (Meta-SGD)
    c.inner.rates_per_step = False  # learned rates of their own for each inner step (with tensor: LSLR of MAML++)
    c.inner.positive_rates = False  # keep learned rates > 0, by learning their logarithms
    c.inner.first_order = False  # FOMAML: inner gradients are constants to the outer loop
    c.inner.checkpoint = "step"  # recompute activations: memory flat in steps; nested: parameters too; none: nothing
    c.inner.forward_over_reverse = False  # another way to the same meta-gradient

    c.outer = ml_collections.ConfigDict()  # the meta-update
    c.outer.optimizer = "adam"  # adam, sgd or rmsprop
    c.outer.rate = 1e-3  # learning rate, > 0
    c.outer.momentum = 0.9  # of sgd, in [0, 1)
    c.outer.weight_decay = 0.0  # added to the meta-gradient, >= 0
    c.outer.clip = 10.0  # meta-gradients are clipped to [-clip, clip], entry by entry; 0: not at all
    c.outer.multi_step = 0  # MAML++: meta-steps until the losses after all inner steps gave way to the last's; 0: off
    c.outer.first_order = 0  # MAML++: first-order meta-steps at the start, before those of second order
    c.outer.schedule = "constant"  # constant, step (times `factor` at each milestone) or cosine (to 0 at train.steps)
    c.outer.milestones = (0,)  # for step: meta-steps at which the rate falls
    c.outer.factor = 0.1  # for step: what it is multiplied by
    c.outer.period = 1  # meta-steps between changes of the rate; 200 is the original's epoch

    c.train = ml_collections.ConfigDict()
    c.train.steps = 10_000  # meta-steps
    c.train.tasks = 4  # tasks per meta-step
    c.train.tasks_at_once = 0  # tasks a device takes side by side, a divisor of its share; 0: one on CPU, else all
    c.train.report_every = 100  # meta-steps between lines of progress, run as one compiled call
    c.train.validate_every = 1000  # meta-steps between validations, which pick the best checkpoint; 0: never
    c.train.validation_tasks = 200  # tasks of the validation split, the same ones every time
    c.train.checkpoint_every = 1000  # meta-steps between checkpoints to resume from

    c.parallel = ml_collections.ConfigDict()  # over devices
    c.parallel.backend = "shard_map"  # shard_map or pmap; the result is the same
    c.parallel.devices = 0  # that share the tasks of a meta-step, a divisor of train.tasks; 0: as many as possible
    c.parallel.cpu_devices = 0  # without an accelerator, how many devices to make of the CPU; 0: one per core
    c.parallel.coordinator = ""  # several processes: host:port of the first, 'auto' on a cluster JAX knows; '': one
    c.parallel.processes = 1  # how many there are
    c.parallel.process = 0  # which of them this one is, from 0

    c.eval = ml_collections.ConfigDict()  # the protocol of validation and test
    c.eval.split = "test"  # test, val or train
    c.eval.tasks = 600  # number of tasks
    c.eval.way = c.task.get_oneway_ref("way")  # another number than task.way needs model.head='zero'
    c.eval.shot = c.task.get_oneway_ref("shot")  # support images per class
    c.eval.query = c.task.get_oneway_ref("query")  # query images per class; the figure depends on it
    c.eval.steps = c.inner.get_oneway_ref("steps")  # inner steps at test
    c.eval.augment = "none"  # none, or enlarge: scaled to 256/224 of image_size, of which the middle is taken
    c.eval.checkpoint = "best"  # best (by validation) or latest
    return c.lock()

"""Every field once, with its meaning. Other configs start from here and change what they study."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Geneformer V1's encoder and recipe; names no data."""
    config = ml_collections.ConfigDict()

    config.data = data = ml_collections.ConfigDict()
    data.h5ad = ""  # stores to train on: paths and globs, separated by commas; "" simulates cells
    # (.h5ad, .zarr, .loom, 10x .h5 or matrix.mtx folder, SOMA experiment, Hugging Face data set of
    # tokens; here, s3:// or gs://)
    data.score_on = ""  # files whose cells no subset contains; "" holds out part of data.h5ad
    data.gene_names = ""  # CSV with the columns gene_name, ensembl_id, for files with symbols
    data.gene_column = ""  # column of .var with the gene ids; "" is the index
    data.layer = ""  # layer with raw counts; "" looks in .X, then in .raw.X; SOMA: X["raw"]
    data.primary_only = True  # leave out cells that a SOMA experiment marks as not primary data
    # vocabulary.json of another corpus, or a folder of Geneformer's dictionaries (.pkl); "" makes a
    # vocabulary from the training pool
    data.vocabulary = ""
    data.medians = "sketch"  # of a new vocabulary: within 1/128 in one reading; or "exact"
    data.min_cells = 1  # training cells a gene must be found in to get a token
    data.cell_type = "cell_type"  # column of .obs with labels to score on; "" where there are none
    data.donor = "donor"  # column of .obs; used where a file has it
    data.batch = "batch"  # column of .obs; used where a file has it
    data.assay = "assay"  # column of .obs; used where a file has it
    # columns of .obs that pretraining can be supervised by, beside cell_type
    data.tissue, data.disease, data.sex = "tissue", "disease", "sex"
    data.keep = ml_collections.ConfigDict()  # {file name: {column: value}}: cells to keep
    data.held_out = 0.2  # share of cells held out (whole donors, else batches) without score_on
    data.split_seed = 0  # of the choice of held-out donors, and of a draw
    # 0 takes all cells; n draws n of them as `datasets` does with shuffle(split_seed), of which the
    # last, a share of held_out, are held out
    data.draw = 0
    # keep each gene's expression beside its token, as every model.encoding but ranks reads it (set
    # by itself where the config has one): three times the space
    data.expression = False
    data.cells_per_shard = 10_000  # cells of a token file
    data.workers = 1  # threads that build the corpus
    data.scheduler = ""  # address of a dask scheduler to build on; "" is this machine

    config.simulation = simulation = ml_collections.ConfigDict()
    simulation.cells = 10_000  # cells to simulate where data.h5ad is ""
    simulation.genes = 4_000  # genes to simulate
    simulation.depth = 800.0  # counts of a cell, the median over cells
    simulation.seed = 0  # of the simulated cells

    config.model = model = ml_collections.ConfigDict()
    model.layers = 6  # N
    model.width = 256  # D
    model.heads = 4  # H
    model.feed_forward = 512  # F
    model.length = 2048  # L, rank positions a cell is cut to
    model.activation = "relu"  # relu, gelu, gelu_tanh (its approximation) or silu
    model.dropout = 0.02  # of hidden states
    model.attention_dropout = 0.02  # of attention weights; 0.0 where devices.attention is fused
    model.norm_epsilon = 1e-12  # of layer norms
    model.dtype = "float32"  # of states and products; or bfloat16. Weights and softmax: float32
    model.remat = False  # compute each layer again on the way back, to save memory
    # width at which the learning rate was found, so that it holds for others (muP); 0: no transfer
    model.base_width = 0
    model.latents = 0  # of MAM: 128 with masking.strategy=mam, 0 with every other
    model.latents_learn = False  # from the loss; False: as in the reference, from a penalty alone
    # ranks; or bins, projection or counts, which see expression in place of ranks (encodings.py)
    model.encoding = "ranks"

    config.masking = masking = ml_collections.ConfigDict()
    masking.rate = 0.15  # share of positions selected
    masking.mask_share = 0.8  # of those: replaced by <mask>
    masking.random_share = 0.1  # of those: replaced by a random gene; the rest stays
    # random genes may be <pad> or <mask>, and V2's <cls> and <eos> are selected, as in the original
    masking.draw_special = False
    # uniform (BERT), band, programs, or mam (with model.latents); all are scored with uniform masks
    masking.strategy = "uniform"
    masking.band = (0.0, 1.0)  # of band: share of a cell's ranks, from the best, where it masks
    masking.programs = ""  # of programs: GMT file
    masking.gene_names = ""  # CSV as data.gene_names, for programs of symbols

    config.objective = objective = ml_collections.ConfigDict()
    objective.name = "cab"  # mlm, cab, or cab_no_similarity
    objective.variant = "recalibrated"  # cab's cross-entropy reads Q; "plain": P
    objective.similarity = "cosine"  # of cab's rows Q; or "dot"
    objective.weight = 0.15  # lambda of the similarity
    objective.denominator = "masked_pairs"  # of the similarity's mean; or "published"
    objective.implementation = "default"  # of the loss kernels: the platform's, or one by name

    config.supervision = supervision = ml_collections.ConfigDict()
    # annotations whose classes are predicted beside the masked genes: cell_type, tissue, disease,
    # sex, or pairs of one and its weight, ("sex", 0.01)
    supervision.columns = ()
    supervision.weight = 0.1  # of the classes' cross-entropy, where a column has none of its own
    # OBO file of the Cell Ontology: a cell whose type is T cell may be of any kind of T cell
    supervision.ontology = ""
    supervision.ontology_labels = ""  # CSV: label, term; "" is the table that comes along

    config.train = train = ml_collections.ConfigDict()
    train.cells = 0  # unique cells; 0 takes the whole pool (a study sets its own)
    train.steps = 0  # duration in steps ...
    train.epochs = 3.0  # ... or in passes over the subset: exactly one above 0
    train.batch = 96  # cells of a global batch
    train.buckets = 1  # lengths to pad to, at most, each a program to compile; 1: model.length
    train.learning_rate = 1e-3  # peak
    train.warmup = 0.1  # share of the steps, or steps from 2 on; then linear decay to 0
    train.weight_decay = 0.001  # AdamW's
    train.clip = 1.0  # norm that gradients are cut to
    train.subset_seed = 0  # of the subset
    train.init_seed = 0  # of weights, dropout and order of cells
    train.mask_seed = 0  # of masks
    train.checkpoint_every = 1_000  # steps
    train.log_every = 10  # steps
    train.held_out_cells = 256  # whose loss is measured
    train.held_out_every = 0  # steps from one such measurement to the next; 0: ten times in a run
    train.scheme = "random"  # of the subset: random, reweighted or sketch (a study sets its own)
    train.spike = ""  # data set (a file's name) that gives a share of the subset; "" is none
    train.spike_share = 0.0  # that share; the rest comes from all other data sets

    # How the machine is used; no result depends on it beyond rounding.
    config.devices = devices = ml_collections.ConfigDict()
    devices.fsdp = 1  # devices that share one copy of the weights
    devices.tensor = 1  # devices that share heads, feed-forward width and vocabulary
    devices.micro_batches = 1  # equal parts of a global batch, one after another
    # blocked; cudnn (GPU) and splash (TPU) want model.dtype=bfloat16, model.attention_dropout=0.0;
    # default: the platform's of these where it gets that, else blocked
    devices.attention = "default"

    config.evaluate = evaluate = ml_collections.ConfigDict()
    evaluate.layer = -2  # states averaged to an embedding; -2 is the layer before the last
    evaluate.cells = 2_000  # of a data set at most
    evaluate.no_batch_mixing = ()  # data sets whose "batches" are no batches
    evaluate.seed = 0  # of splits, clusterings and resamples
    evaluate.pool = "genes"  # mean over the genes' positions; or cls, the state of V2's <cls>
    # also: perturbation, noise, ontology, gene_sets
    evaluate.tasks = ("masked_genes", "cell_types", "batch_mixing", "confounds")
    # fitted on the model's training cells: hvg, pca, parameter_free; on the scored cells: harmony,
    # scvi; on those that probes are fitted on: majority, logistic, random_forest, svm
    evaluate.baselines = ("hvg", "pca")
    # {data set: (control, stimulated)}, two of its batches, for perturbation
    evaluate.stimulus = ml_collections.ConfigDict()
    # {data set: control}, for perturbation: the data set's batches are perturbed genes (data.batch
    # names the column), "A+B" of two, and the control's name
    evaluate.screens = ml_collections.ConfigDict()
    evaluate.gene_names = ""  # as data.gene_names, for screens and gene_sets of symbols
    evaluate.ontology = ""  # OBO file of the Cell Ontology, for ontology
    evaluate.ontology_labels = ""  # CSV: label, term; "" is the table that comes along
    # {name: {"path": CSV, "positive": column, "negative": column} of two lists of genes, or
    # {"path": CSV, "gene": column, "flags": columns} of a row per gene}, for gene_sets
    evaluate.gene_labels = ml_collections.ConfigDict()
    evaluate.gene_sets = ""  # GMT file, for gene_sets

    # A study runs every combination of these axes; () is the one value of the config's own field.
    config.study = study = ml_collections.ConfigDict()
    # Unique cells of the nested subsets: counts, fractions of the training pool (0.1, 1.0) or
    # ladders "first:last:steps", spaced evenly in the logarithm ("100:1e6:9").
    study.sizes = (100, 1_000, 10_000)
    study.schemes = ("random",)  # of subsets; also: reweighted, sketch
    study.objectives = ("mlm", "cab")  # also: cab_no_similarity
    study.seeds = (0, 1)  # each is subset, init and mask seed of its runs, or a triple of these
    study.steps = ()  # durations: train.steps, the same for every size ...
    study.epochs = ()  # ... and train.epochs; each value of either is one duration
    # Model sizes: rungs of the ladder ("0.4m", "1m"), or pairs of a name and fields of config.model
    # ("small", {"layers": 2}); set model.base_width, so that one learning rate holds for all.
    study.encoders = ()
    study.variants = ()  # objective.variant of cab: recalibrated, plain
    # objective.weight of cab: numbers, or pairs of a variant and its own ("plain", 200.0)
    study.weights = ()
    study.maskings = ()  # masking.strategy of training; all runs are scored with uniform masks
    study.masking_rates = ()  # masking.rate of training; all runs are scored at masking.rate
    study.encodings = ()  # model.encoding
    study.supervisions = ()  # supervision.columns, each a tuple: ((), ("cell_type",))

    return config.lock()

"""Every score of one model of configs/blood.py beside every baseline, on real human blood cells.

Command, with a run and the corpus of that study in runs/blood:
  python -m experiments.evaluate --config=configs/blood_scores.py --config.data.h5ad=GLOB \\
    --config.data.score_on=GLOB --config.data.gene_names=TABLE.csv --workdir=runs/scored \\
    --checkpoint=runs/blood/runs/cab-n8000-s0 --corpus=runs/blood/corpus
cells/ holds Geneformer's tables of labelled genes and the Cell Ontology's cl-basic.obo.
Result: experiments/blood_scores/README.md.
"""

import ml_collections

from configs import blood


def get_config() -> ml_collections.ConfigDict:
    """The study's, with every task and baseline."""
    config = blood.get_config()
    evaluate = config.evaluate
    evaluate.cells = 3_000
    evaluate.tasks = (
        "masked_genes", "cell_types", "batch_mixing", "confounds", "perturbation", "noise",
        "ontology", "gene_sets",
    )  # fmt: skip
    evaluate.baselines = (
        "hvg", "pca", "parameter_free", "harmony", "majority", "logistic", "random_forest", "svm",
    )  # fmt: skip
    evaluate.ontology = "cells/cl-basic.obo"
    with config.unlocked():
        labels = evaluate.gene_labels
        labels.dosage_sensitivity = {
            "path": "cells/dosage_sens_tf_labels.csv",
            "positive": "dosage_sensitive", "negative": "dosage_insensitive",
        }  # fmt: skip
        for name, gene, flags in (
            ("bivalent", "tf", ("H3K4me3", "H3K27me3")),
            ("longrange_tf", "ensembl_id", ("is_longrange",)),
            ("n1_central", "ensembl_id", ("network_centricity",)),
        ):
            labels[name] = {"path": f"cells/is_{name}.csv", "gene": gene, "flags": flags}
    return config

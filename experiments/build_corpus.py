"""`.h5ad` files -> a corpus: python -m experiments.build_corpus --config --workdir"""

from experiments.launch import launch
from scaling import prepare

if __name__ == "__main__":
    launch(lambda settings, workdir: prepare.describe(prepare.corpus_of(settings, workdir)))

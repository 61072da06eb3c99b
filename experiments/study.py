"""Config -> corpus, runs, scores, curves, report: python -m experiments.study --config --workdir"""

from experiments.launch import launch
from scaling import study

if __name__ == "__main__":
    launch(study.run, many_hosts=True)

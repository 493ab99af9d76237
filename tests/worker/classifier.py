"""Train a small classifier and save it as MLflow does: ``python classifier.py OUT``, by the mlflow environment.

Prints rows and what the classifier itself says of them, for whoever asks the server the same.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    # Only the mlflow environment has these.
    import mlflow.sklearn
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data = load_iris()
    classifier = LogisticRegression(max_iter=500).fit(data.data, data.target)
    mlflow.sklearn.save_model(classifier, sys.argv[1], input_example=data.data[:1])
    rows = data.data[::15]
    sys.stdout.write(json.dumps({"rows": rows.tolist(), "classes": classifier.predict(rows).tolist()}))


if __name__ == "__main__":
    main()

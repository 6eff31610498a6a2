"""Judge the images of a folder on Spark, with a pandas UDF, and write Parquet.

    pip install pyspark 'defectcam[parquet]' pandas
    python examples/spark_images.py part.safetensors images found

Every worker must see the model and the images under these names. It loads the model once for each
partition, so partitions are large; an image that cannot be read gets a row that says why. Without a
cluster, Spark runs on this machine. Where nothing else calls for Spark, `defectcam.distributed`
does the same on Ray, and goes on where a call that was killed has ended.
"""

import argparse
import os
from collections.abc import Iterator

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import pandas_udf

from defectcam.distributed import Localizer
from defectcam.images import find_images

COLUMNS = ["label", "probability", "boxes", "error"]
SCHEMA = "label string, probability double, boxes array<array<int>>, error string"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a file that `save` has written")
    parser.add_argument("images", help="folder")
    parser.add_argument("output", help="folder of Parquet files, which is replaced")
    parser.add_argument("--partition-size", type=int, default=1000, help="images (default: 1000)")
    options = parser.parse_args()

    # Workers are processes, one per processor: more threads would stand in each other's way.
    spark = (
        SparkSession.builder.appName("defectcam")
        .config("spark.executorEnv.OMP_NUM_THREADS", "1")
        .getOrCreate()
    )
    paths = [os.path.abspath(path) for path in find_images(options.images)]
    n_partitions = -(-len(paths) // options.partition_size)
    images = spark.createDataFrame([(path,) for path in paths], "image string")
    found = judged(images.repartition(n_partitions), options.model)
    found.write.mode("overwrite").parquet(options.output)
    written = spark.read.parquet(options.output)
    unread = written.filter("error is not null").count()
    print(f"{written.count()} images are in {options.output}; {unread} of them could not be read.")


def judged(images: DataFrame, model: str) -> DataFrame:
    """Add what is found in the files that the column ``image`` names."""
    path = os.path.abspath(model)

    @pandas_udf(SCHEMA)
    def judge(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        localizer = Localizer(path)
        for names in batches:
            rows = localizer.rows_of(names)
            yield pd.DataFrame(
                [[row.get(name) for name in COLUMNS] for row in rows], columns=COLUMNS
            )

    return images.select("image", judge("image").alias("found")).select("image", "found.*")


if __name__ == "__main__":
    main()

"""The paper's claim at small scale: Table 2 and its controls, with intervals, trained and compared by one command.

    python -m benchmarks.study run --directory=runs/study --data=npz:PATH --rows=B,C --seeds=0,1,2 --processes=2
    python -m benchmarks.study table --directory=runs/study --clusters=image
    python -m benchmarks.study report --directory=runs/study --clusters=image
    python -m benchmarks.study shift --directory=runs/study
    python -m benchmarks.study information --directory=runs/study
    python -m benchmarks.study plan --directory=runs/plan --base=configs/d16.py --data=tfds:imagenet2012 \\
        --topology=gpu:a100:1x8

`run` trains every row and seed in a workdir of its own, and writes one JSON file of results for each. It can be
interrupted: what is finished is skipped, and trainings resume. Any setting of the product may follow for all rows, such
as --config.tokenizer.train.steps=1200. `table` and `report` need the results only; the report also shows samples if
their workdirs are there. `shift` says how many tokens a shift of the image by one pixel leaves alike, and needs the
tokenizers' workdirs. `information` says what alias tokens tell about the next scale, and needs the workdirs of rows
with a teacher. `plan` says what every row would cost on a machine. Which rows there are and what they are
compared with is in rows.py. What is measured and why is in docs/measurements/study.md.
"""

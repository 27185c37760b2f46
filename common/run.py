"""A training as a run directory: what is saved, so that it can go on after any interruption."""

import csv
import io
import time
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from . import checkpoint, processes
from .recipe import learning_rate_factor

FILES = ("last.pt", "best.pt", "log.csv", "loss.csv", "iou.csv", "curves.png", "predictions.png",
         "config.json")
PROGRESS = ("step", "best", "log", "running", "curve")  # of a Run


class Run:
    """How far a training is. Its last.pt holds all that is needed to go on, bit by bit.

    step: how many were done. best: the highest mIoU so far, -1 before the first. log: a dictionary
    for every evaluation. running: sum and number of the losses since the last one. curve: every
    loss. draw(log, curve, samples) is called after every evaluation. resume: the content of a
    last.pt. Only the first process writes.
    """

    def __init__(self, out, config, recipe, model, optimizer, scaler, resume=None, draw=None):
        self.out, self.config, self.recipe, self.draw = Path(out), config, recipe, draw
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.step, self.best, self.log, self.running, self.curve = 0, -1.0, [], [0.0, 0], []
        if processes.rank() == 0:
            for name in FILES:  # left by a process that was killed while it wrote
                for path in filter(Path.is_file, self.out.glob(f"{name}*.part")):
                    path.unlink(missing_ok=True)
        if not resume:
            self.save("last.pt")  # a run can be resumed from its first second on
            return
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        if scaler.is_enabled():
            scaler.load_state_dict(resume["scaler"])
        for name in PROGRESS:
            setattr(self, name, resume[name])

    def save(self, name):
        """Write last.pt or best.pt."""
        if processes.rank() == 0:
            checkpoint.save(self.out / name, {
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(), "config": self.config,
                "recipe": asdict(self.recipe), **{key: getattr(self, key) for key in PROGRESS}})

    def progress_bar(self):
        """A bar that starts where the run is."""
        self.started, self.first = time.monotonic(), self.step
        return tqdm(total=self.recipe.steps, initial=self.step, unit="step",
                    desc=self.config["paper"], disable=processes.rank() > 0)

    @property
    def due(self):
        """Whether this state is one to evaluate and has not been evaluated."""
        done, end = self.log[-1]["step"] if self.log else 0, self.step == self.recipe.steps
        return self.step > done and (end or self.step % self.recipe.eval_every == 0)

    def record(self, loss, bar):
        """A step is done."""
        self.step += 1
        self.running = [self.running[0] + loss, self.running[1] + 1]
        self.curve.append(loss)
        seconds = time.monotonic() - self.started
        rate = (self.step - self.first) * self.recipe.batch_size / seconds
        miou = f"{self.best:.1%}" if self.best >= 0 else "-"
        bar.update()
        bar.set_postfix_str(f"loss {loss:.3f}, mIoU {miou}, {rate:.0f} images/s", refresh=False)

    def evaluated(self, matrix, samples):
        """Add a row to the log, draw, and save: the state is the last one, and maybe the best."""
        rate = self.recipe.lr * learning_rate_factor(self.step - 1, self.recipe)
        loss, self.running = self.running[0] / max(1, self.running[1]), [0.0, 0]
        self.log.append({"step": self.step, "loss": loss, "miou": matrix.miou,
                         "pixel_accuracy": matrix.pixel_accuracy, "lr": rate})
        improved = not matrix.miou <= self.best
        self.best = matrix.miou if improved else self.best
        if processes.rank() == 0:
            text = io.StringIO()
            writer = csv.DictWriter(text, self.log[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: f"{value:.6g}" for k, value in row.items()} for row in self.log)
            checkpoint.write_atomically(self.out / "log.csv", text.getvalue().encode())
            if self.draw:
                self.draw(self.log, self.curve, samples)
        if improved:
            self.save("best.pt")
        self.save("last.pt")  # last: a run killed before this line does all of the above again

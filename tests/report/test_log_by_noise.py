"""Gates and energies by noise level, from the lines of a log."""

import json

from fera.report.figures import gate_figures, noise_figures
from fera.report.log import Log, read_log


def test_lines_are_averaged_and_go_from_noise_to_clean(tmp_path):
    lines = [
        {"step": 1, "gates_by_noise": [[1.0, 0.0], None], "bands": [0.25, 0.75]},
        {"step": 2, "gates_by_noise": [[0.5, 0.5], [0.0, 1.0]], "bands": [0.5, 0.5]},
        {"step": 3, "gates_by_noise": "odd", "bands_by_noise": [["x"], 3, None]},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_log(tmp_path / "log.jsonl")
    assert log.by_noise("gates_by_noise") == [(0.75, [0.0, 1.0]), (0.25, [0.75, 0.25])]
    assert log.by_noise("gates_by_noise", last=1) == [(0.75, [0.0, 1.0]), (0.25, [0.5, 0.5])]
    assert log.by_noise("bands_by_noise") == [] and log.by_noise("none") == []
    assert log.band_series() == [[(1, 0.25), (2, 0.5)], [(1, 0.75), (2, 0.5)]]


def test_charts_are_there_where_the_log_tells_and_not_elsewhere():
    told = {"bands": [0.2, 0.3, 0.5], "gates_by_noise": [[0.2, 0.8]] * 8, "bands_by_noise": [[0.2, 0.3, 0.5]] * 8}
    routed = {"gates": [0.2, 0.8], "gate_entropy": 0.5}
    old, new = Log([{"step": 1, **routed}]), Log([{"step": 1, **routed, **told}])
    titles = ["Use of the experts", "Entropy of the gate"]
    assert [figure.title for figure in gate_figures(old)] == titles
    more = ["Energy by band", "Gates along the noise, lately", "Energies along the noise, lately"]
    assert [figure.title for figure in gate_figures(new)] == titles + more
    assert [label for _, label, _ in gate_figures(new)[-1].legend] == ["low band", "middle band", "high band"]
    assert noise_figures(old) == [None, None]

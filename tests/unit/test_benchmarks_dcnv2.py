import json

from benchmarks import dcnv2


def test_cpu_form_reports_checked_times(tmp_path, capsys):
    command = ["--device", "cpu", "--network", "resdcn_18", "--batch", "1", "--repeats", "1"]
    assert dcnv2.main([*command, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "dcnv2.fp32.json").read_text())
    for row in results["layers"]:
        assert set(row["us"]) == {"torchvision", "ONNX Runtime"}
        assert max(row["error"].values()) < 1e-5
    assert "| ONNX Runtime |" in (tmp_path / "dcnv2.fp32.md").read_text()


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert dcnv2.main([]) == 2
    assert "--device cpu" in capsys.readouterr().err

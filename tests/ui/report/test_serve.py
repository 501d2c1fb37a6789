"""The page on loopback: who may ask, what is answered, and that it follows the folder."""

from __future__ import annotations

import html
import json
import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection, HTTPResponse
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shepherd.errors import FolderError, ShepherdError
from shepherd.run import folder
from shepherd.ui import access, report
from tests.ui.report import folders


def ask(url: str, path: str = "/", method: str = "GET", **headers: str) -> tuple[HTTPResponse, str]:
    """As a browser asks that has been there once: with the cookie for the token in `url`."""
    place = urlsplit(url)
    headers = {"Cookie": f"shepherd-{place.port}={place.query.removeprefix('token=')}", **headers}
    connection = HTTPConnection(str(place.hostname), place.port, timeout=10)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folders.write(tmp_path / "run", done=3)


def test_the_page_and_its_json_are_served(run: Path) -> None:
    with report.serving(run) as url:
        answer, text = ask(url)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "stopped, round 3 of 12" in text
        assert json.loads(ask(url, "/report.json")[1]) == report.collect(run)
        assert ask(url, "/etc/passwd")[0].status == 404
        assert ask(url, "/../run.toml")[0].status == 404
    assert not list(run.glob("report.*"))  # looking writes nothing


def test_one_script_is_allowed_by_a_nonce_of_its_own(run: Path) -> None:
    with report.serving(run) as url:
        policies, nonces = set(), set()
        for _ in range(2):
            answer, text = ask(url)
            policy = answer.headers["Content-Security-Policy"]
            nonce = text.split('<script nonce="')[1].split('"')[0]
            assert f"script-src 'nonce-{nonce}'" in policy
            assert "default-src 'none'" in policy
            assert text.count("<script") == 1
            policies.add(policy)
            nonces.add(nonce)
    assert len(nonces) == len(policies) == 2


def test_the_first_visit_gives_a_cookie_and_the_token_leaves_the_address(run: Path) -> None:
    with report.serving(run) as url:
        place = urlsplit(url)
        answer, text = ask(url, f"/?{place.query}", Cookie="")
        assert (answer.status, answer.headers["Location"], text) == (303, "/", "see /\n")
        cookie = SimpleCookie(answer.headers["Set-Cookie"])
        (name,) = cookie
        assert name == f"shepherd-{place.port}"
        assert (cookie[name]["httponly"], cookie[name]["samesite"], cookie[name]["path"]) == (
            True,
            "Lax",
            "/",
        )
        assert ask(url, Cookie=f"other=1; {name}={cookie[name].value}")[0].status == 200
        assert ask(url, f"/report.json?{place.query}", Cookie="")[0].status == 200  # curl has no cookie


@pytest.mark.parametrize("path", ["/", "/main", "/report.json", "/?token=", "/main?token=wrong", "/none"])
@pytest.mark.parametrize(
    "cookie", ["", "shepherd-{port}=wrong", "shepherd-1={token}", "shepherd-{port}=ü; =;", ";"]
)
def test_without_the_token_nothing_is_told(run: Path, path: str, cookie: str) -> None:
    with report.serving(run) as url:
        place = urlsplit(url)
        token = place.query.removeprefix("token=")
        assert len(token) >= 32
        answer, text = ask(url, path, Cookie=cookie.format(port=place.port, token=token))
        assert (answer.status, text) == (403, access.REFUSED)
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Set-Cookie" not in answer.headers
        assert token not in str(answer.headers)


def test_another_page_of_this_machine_is_told_nothing(run: Path) -> None:
    """Another user's page on another port, to which a browser counts the cookie."""
    with report.serving(run) as url:
        place = urlsplit(url)
        for origin in ("http://127.0.0.1:1", "http://localhost:1", "https://evil.example", "null"):
            answer, text = ask(url, "/main", Origin=origin)
            assert (answer.status, text) == (403, access.REFUSED)
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert ask(url, "/main", Origin=f"http://{place.netloc}")[0].status == 200


def test_each_server_has_a_token_of_its_own_that_no_log_holds(
    run: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tokens = set()
    with caplog.at_level("DEBUG"):
        for _ in range(2):
            with report.serving(run) as url:
                ask(url, f"/?{urlsplit(url).query}", Cookie="")
                ask(url, "/?token=wrong", Cookie="")
                tokens.add(urlsplit(url).query.removeprefix("token="))
    assert len(tokens) == 2
    said = "".join(capfd.readouterr()) + caplog.text + repr(access.Token())
    assert not [token for token in tokens if token in said]
    assert "secret" not in repr(access.Token())


def test_an_unchanged_page_is_not_sent_again(run: Path) -> None:
    with report.serving(run) as url:
        answer, first = ask(url, "/main")
        tag = answer.headers["ETag"]
        assert f'data-tag="{html.escape(tag, quote=True).replace("&quot;", "&#34;")}"' in ask(url)[1]
        again, nothing = ask(url, "/main", If_None_Match=tag)
        assert (again.status, nothing, again.headers["ETag"]) == (304, "", tag)
        held = folder.reopen(run)
        held.append({"round": 4, "loss": 1.5})
        held.close()
        changed, second = ask(url, "/main", If_None_Match=tag)
        assert changed.status == 200
        assert changed.headers["ETag"] != tag
        assert "round 3 of 12" in first
        assert "round 4 of 12" in second


def test_a_run_that_dies_is_seen_to_have_stopped(run: Path) -> None:
    held = folder.reopen(run)
    with report.serving(run) as url:
        assert "still running, round 3 of 12" in ask(url, "/main")[1]
        held.close()
        assert "stopped, round 3 of 12" in ask(url, "/main")[1]


def test_damage_is_reported_and_forgotten_once_it_is_fixed(run: Path) -> None:
    with report.serving(run) as url:
        folders.put(run / "compare" / "comparison.json", [])
        _, text = ask(url, "/main")
        assert "contains no JSON object" in text
        assert ask(url, "/report.json")[0].status == 404
        assert ask(url)[0].status == 200
        folders.comparison(run)
        assert "Is federation worth it?" in ask(url, "/main")[1]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1:1", "", "[::1]", "0.0.0.0"]
)
def test_only_this_machines_own_names_are_answered(run: Path, host: str) -> None:
    with report.serving(run) as url:
        answer, text = ask(url, Host=host)
        assert answer.status == 421
        assert "round" not in text
        assert ask(url, Host=f"localhost:{urlsplit(url).port}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get_is_answered(run: Path, method: str) -> None:
    with report.serving(run) as url:
        answer, _ = ask(url, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")


def test_it_listens_on_loopback_alone(run: Path) -> None:
    with report.serving(run) as url:
        port = urlsplit(url).port
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        mine = [row[1] for row in listening if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
        assert mine == [f"0100007F:{port:04X}"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port or 0), timeout=5)


@pytest.mark.parametrize("port", [None, 70_000, -1])
def test_a_port_that_cannot_be_had_is_one_sentence(run: Path, port: int | None) -> None:
    with report.serving(run) as url:
        wanted = urlsplit(url).port if port is None else port
        with (
            pytest.raises(ShepherdError, match=f"^port {wanted} of 127.0.0.1 is not available"),
            report.serving(run, wanted or 0),
        ):
            pass


def test_a_folder_without_a_run_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds no run"), report.serving(tmp_path):
        pass


def test_ctrl_c_ends_it_with_a_word(run: Path) -> None:
    code = (  # a job in the background would ignore it
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from shepherd.ui.report import watch\n"
        f"watch({str(run)!r}, echo=lambda text: print(text, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        url = first.split(" is at ")[1].split()[0]
        assert ask(url)[0].status == 200
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert rest.startswith("stopped")

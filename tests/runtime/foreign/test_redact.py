"""What looks like a secret is taken out of every text that is written down: by its name and by its form."""

from __future__ import annotations

import json
from collections import UserDict
from collections.abc import Iterator

import pytest

from runtime.foreign._redact import REDACTED, Redaction

SECRET = "Zq9mW4xK7vT2pL8nR5"

#: Texts with a secret at §: headers, addresses, settings, environments, keys, command lines, JSON under telling names.
LEAKS = [
    "X-Api-Key: §",
    "Proxy-Authorization: Basic §",
    "X-Amz-Security-Token: §",
    "x-vault-token: §",
    "PRIVATE-TOKEN: §",
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=§",  # noqa: E501
    'Authorization: Digest username="u", response="§"',
    "https://acc.blob.core.windows.net/c?sv=2020&sig=§%3D&se=2026",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=x&X-Amz-Signature=§",
    "https://x/cb?code=1&access_token=§&x=1",
    "https://x/?apikey=§",
    "https://x/?key=§",
    "https://x/cb?code=§&state=1",
    "https://u:pa/§@h/x",
    "https://u:pa#§@h/x",
    "https://u:pa?§@h/x",
    "mongodb+srv://u:§@c.mongodb.net/db",
    "redis://default:§@h:1",
    "git clone https://oauth2:§@gitlab.com/x.git",
    "ftp://u:§@h",
    "jdbc:mysql://h/db?user=u&password=§",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=§==;EndpointSuffix=x",
    "Server=h;Database=d;User Id=u;Password=§;",
    "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey=§",
    "host=h user=u password=§ dbname=d",
    "postgresql://h/db?user=u&password=§",
    '{"accessToken": "§"}',
    '{"refresh_token": "§"}',
    '{"id_token": "§"}',
    '{"clientSecret": "§"}',
    '{"apiKey": "§"}',
    '{"privateKey": "§"}',
    '{"dbPassword": "§"}',
    '{"DB_PASS": "§"}',
    '{"pass": "§"}',
    '{"passcode": "§"}',
    '{"pin": "§"}',
    '{"otp": "§"}',
    '{"auth": {"token": "§"}}',
    '{"headers": {"Authorization": "Bearer §"}}',
    '{"headers": [["authorization", "Bearer §"]]}',
    '{"headers": [{"name": "Authorization", "value": "token §"}]}',
    '[{"key": "DB_PASSWORD", "value": "§"}]',
    '{"env": [{"name": "API_TOKEN", "value": "§"}]}',
    '{"name": "password", "value": "§"}',
    '{"password_hash": "§"}',
    '{"passwordHash": "§"}',
    '{"secretKey": "§"}',
    '{"secret_access_key": "§"}',
    '{"SecretAccessKey": "§"}',
    '{"sessionToken": "§"}',
    '{"bearer": "§"}',
    '{"jwt": "§"}',
    '{"encryption_key": "§"}',
    '{"signing_key": "§"}',
    '{"master_key": "§"}',
    '{"sshKey": "§"}',
    '{"webhook_secret": "§"}',
    '{"cookie": "a=§"}',
    '{"set-cookie": ["a=§"]}',
    '{"credentials": ["§"]}',
    '{"Password ": "§"}',
    '{"pass word": "§"}',
    '{"passwort": "§"}',
    '{"kennwort": "§"}',
    '{"token_value": "§"}',
    '{"apiKeyValue": "§"}',
    '{"secret_value": "§"}',
    '{"my_secret_2": "§"}',
    '{"password1": "§"}',
    '{"password2": "§", "PASSWORD_CONFIRM": "§"}',
    '{"api_key_prod": "§"}',
    "export GITHUB_TOKEN=§",
    "AWS_SESSION_TOKEN=§\nHOME=/root",
    "OPENAI_API_KEY=§",
    "MYSQL_PWD=§",
    "PGPASSWORD=§",
    "DB_PASS=§",
    "SMTP_PASS='§'",
    "RAILS_MASTER_KEY=§",
    "SECRET_KEY_BASE=§",
    "DJANGO_SECRET_KEY=§",
    "JWT_SECRET=§",
    'declare -x TOKEN="§"',
    "set PASSWORD=§",
    '$env:API_KEY = "§"',
    "ENV API_TOKEN §",
    "environ({'API_TOKEN': '§'})",
    "[('API_TOKEN', '§')]",
    "DB_PASSWORD => §",
    ':password => "§"',
    'password := "§"',
    '"password" : "§"',
    "setx TOKEN §",
    "-----BEGIN RSA PRIVATE KEY-----\n§\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\n§",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\n§\n-----END PGP PRIVATE KEY BLOCK-----",
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\\n§\\n-----END ENCRYPTED PRIVATE KEY-----",
    "-----BEGIN EC PARAMETERS-----\nx\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\n§\n-----END EC PRIVATE KEY-----",  # noqa: E501
    "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n§\n---- END SSH2 ENCRYPTED PRIVATE KEY ----",
    "PuTTY-User-Key-File-3: ssh-rsa\nPrivate-Lines: 1\n§",
    "sk-proj-§",
    "sk-ant-api03-§",
    "xapp-1-§",
    "GOCSPX-§",
    "pypi-AgEI§",
    "shpat_§Zq9mW4xK7vT2pL",
    "hvs.§",
    "dop_v1_§§",
    "lin_api_§",
    "bot123456789:AA§Zq9mW4xK7vT2pL8",
    "gldt-§",
    "sbp_§",
    "figd_§",
    "r8_§§",
    "gsk_§",
    "xai-§",
    "AIza§Zq9mW4xK7vT2pL8nR",
    "ntn_§",
    "https://discord.com/api/webhooks/123456789/§",
    "tvly-§",
    "pplx-§",
    "glsa_§",
    "whsec_§",
    "passwd: §",
    "PASSWORD: §",
    "Password is §",
    "the password is §.",
    "my password: §",
    "machine h login u password §",
    "PGPASS: §",
    "mysql -u root -p§",
    "sshpass -p § ssh h",
    "docker login -u u -p §",
    "curl -H 'X-Api-Key: §'",
    "curl --user u:§ h",
    "curl -uuser:§ h",
    "wget --password=§",
    "--api-key=§",
    "--apiKey §",
    "--secret-key '§'",
    "root:$6$salt$§:19000:0",
    "u:$2y$10$§",
    "_authToken=§",
    "//packages.example.org/:_authToken=§",
    "<password>§</password>",
    "<Password>§</Password>",
    '<add key="ApiKey" value="§"/>',
    '<input name="password" value="§">',
    "password='it''s§'",
    'password="a""§"',
    "api_key:\n  §",
    "tokens: §",
    "token=§",
    "token = §",
    "Token token=§",
    "Authorization: ApiKey §",
    "Authorization=Bearer%20§",
    "auth_token%3D§",
    "password%22%3A%22§%22",
    '\\"password\\": \\"§\\"',
    '\\\\\\"password\\\\\\": \\\\\\"§\\\\\\"',
    "Cookie: a=1; b=§",
    "cookies: {'sid': '§'}",
    "b'password=§'",
    "Set-Cookie: id=§; HttpOnly\r\nSet-Cookie: b=§",
    "password: |-\n    §\n    more",
    "secrets:\n  - §\n  - §",
    "credentials:\n  user: u\n  pin: §",
    "password: !vault |\n  $ANSIBLE\n  §",
    "password: >\n  §",
]
#: What only looks like one.
HARMLESS = [
    "The password policy is strict.", "token_count: 5", "tokens: 512", "max_tokens=100", "the key is under the mat",
    "pass: 12 fail: 3", "12 passed", '{"pass": 12, "fail": 3}', '{"n_pass": 3}', "sort by key=lambda x: x",
    "primary key: id", "author: Ann", "https://h/a:b@c", "see http://localhost:8000/@user", "session: abc", "monkey=5",
    "compass: north", "bypass: yes", "ssh -p 2222 host", "docker run -p 80:80 -u 1000:1000 x", "https://h/?code=404",
    "the secret of success", "pin: 3", "signature=def f(x)", "password is required", "password is too short",
    "the token is expired", '[{"key": "color", "value": "red"}]', "costs $5 and $6", "private_key_id",
    "mysql -u root -p < dump.sql",
]  # fmt: skip


@pytest.mark.parametrize("text", LEAKS)
def test_a_secret_does_not_get_through(text: str) -> None:
    """JSON stays JSON, and doing it twice changes nothing more."""
    redaction = Redaction()
    clean = redaction.text(text.replace("§", SECRET))
    assert SECRET not in clean
    assert REDACTED in clean
    assert redaction.text(clean) == clean
    if text[0] == "{" or text[:2] == "[{":
        json.loads(clean)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_one_stays(text: str) -> None:
    assert Redaction().text(text) == text


def test_a_key_that_is_written_in_capitals() -> None:
    text = f"AGE-SECRET-KEY-1{SECRET.upper()}"
    assert Redaction().text(text) == REDACTED


class Changing(UserDict[str, str]):
    """An environment which loses a variable while its names are read, as `os.environ` does by another thread."""

    def __iter__(self) -> Iterator[str]:
        names = list(self.data)
        del self.data["GOING_TOKEN"]
        return iter(names)


def test_an_environment_that_changes_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Changing(GOING_TOKEN="gone-by-now", STAYING_TOKEN="correct horse")
    monkeypatch.setattr("runtime.foreign._redact.os.environ", environment)
    redaction = Redaction()
    assert redaction.text("a correct horse, gone-by-now") == f"a {REDACTED}, gone-by-now"

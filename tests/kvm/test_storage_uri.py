"""URIs of storage servers: each becomes typed options of QEMU, and nothing else gets through."""

from __future__ import annotations

from typing import Any

import pytest

from hvcore_kvm.storage_uri import READ_ONLY_DRIVERS, parse_uri

_NBD = {"type": "inet", "host": "disks.example", "port": "10809"}


@pytest.mark.parametrize(
    ("uri", "options"),
    [
        ("nbd://disks.example/vm1", {"driver": "nbd", "server": _NBD, "export": "vm1"}),
        ("nbd://disks.example:2000", {"driver": "nbd", "server": {**_NBD, "port": "2000"}}),
        ("nbd://disks.example/", {"driver": "nbd", "server": _NBD}),
        (
            "nbd://[2001:db8::7]:10810/a%20b",
            {"driver": "nbd", "server": {"type": "inet", "host": "2001:db8::7", "port": "10810"}, "export": "a b"},
        ),
        (
            "nbd+unix:///vm1?socket=/run/nbd.sock",
            {"driver": "nbd", "server": {"type": "unix", "path": "/run/nbd.sock"}, "export": "vm1"},
        ),
        (
            "nbd+unix:///?socket=/run/a%2Cb",
            {"driver": "nbd", "server": {"type": "unix", "path": "/run/a,b"}},
        ),
        ("rbd:pool/image", {"driver": "rbd", "pool": "pool", "image": "image"}),
        (
            "rbd:pool/space/image@snap:id=admin:conf=/etc/ceph/other.conf",
            {
                "driver": "rbd",
                "pool": "pool",
                "namespace": "space",
                "image": "image",
                "snapshot": "snap",
                "user": "admin",
                "conf": "/etc/ceph/other.conf",
            },
        ),
        (
            "gluster://node1/vol/dir/disk.img",
            {
                "driver": "gluster",
                "volume": "vol",
                "path": "dir/disk.img",
                "server": [{"type": "inet", "host": "node1", "port": "24007"}],
            },
        ),
        (
            "gluster+tcp://node1:24008/vol/disk",
            {
                "driver": "gluster",
                "volume": "vol",
                "path": "disk",
                "server": [{"type": "inet", "host": "node1", "port": "24008"}],
            },
        ),
        (
            "gluster+unix:///vol/disk?socket=/run/gluster.sock",
            {
                "driver": "gluster",
                "volume": "vol",
                "path": "disk",
                "server": [{"type": "unix", "path": "/run/gluster.sock"}],
            },
        ),
        (
            "iscsi://san.example/iqn.2001-04.com.example:storage/3",
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "san.example:3260",
                "target": "iqn.2001-04.com.example:storage",
                "lun": 3,
            },
        ),
        (
            "iscsi://me@[2001:db8::1]:3261/iqn.x/0",
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "[2001:db8::1]:3261",
                "target": "iqn.x",
                "lun": 0,
                "user": "me",
            },
        ),
        (
            "nfs://filer.example/export/disk%201.raw",
            {"driver": "nfs", "server": {"type": "inet", "host": "filer.example"}, "path": "/export/disk 1.raw"},
        ),
        ("http://w.example/cd.iso?v=2", {"driver": "http", "url": "http://w.example/cd.iso?v=2"}),
        ("https://w.example:8443/cd.iso", {"driver": "https", "url": "https://w.example:8443/cd.iso"}),
        ("ftp://w.example/cd.iso", {"driver": "ftp", "url": "ftp://w.example/cd.iso"}),
        ("ftps://w.example/cd.iso", {"driver": "ftps", "url": "ftps://w.example/cd.iso"}),
    ],
)
def test_uris(uri: str, options: dict[str, Any]) -> None:
    """What a URI says stands in options of its own, percent signs resolved."""
    found = parse_uri(uri)
    assert found == options
    assert next(iter(found)) == "driver"


@pytest.mark.parametrize(
    "uri",
    [
        *("", ":", "/dev/sda", "file:///etc/shadow", "ssh://host/disk", "json:{}", "NBD://host/x", "fat:rw:/etc"),
        *("nbd://", "nbd:///x", "nbd:host:1", "nbd://host:0/x", "nbd://host:99999/x", "nbd://host:x/y", "nbd://[::1/x"),
        *("nbd://host/x?socket=/run/s", "nbd+unix:///x", "nbd+unix:///x?socket=run/s", "nbd+unix://host/x?socket=/s"),
        *("nbd+unix:///x?socket=/s&socket=/t", "nbd+unix:///x?socket=/s&tls=1", "nbd+unix:///x?socket=/s%00"),
        *("nbd://user:secret@host/x", "nbd://host/x#y", "nbd://host/a b", "nbd://host/x\n", "nbd://host/\x7f"),
        *("rbd:", "rbd:image", "rbd:/image", "rbd:pool/", "rbd:a/b/c/d", "rbd:pool/image,x=y"),
        *("rbd:pool/image:key=secret", "rbd:pool/image:id=", "rbd:pool/image:id=a:id=b", "rbd:pool/image@"),
        *("gluster://host/vol", "gluster://host/", "gluster:///vol/x", "gluster+rdma://host/vol/x"),
        *("iscsi://host/target", "iscsi://host/target/x", "iscsi://host/target/123456", "iscsi:///target/1"),
        *("iscsi://u:p@host/target/1", "iscsi://host/target/1?chap=x", "iscsi://host/target/-1"),
        *("nfs://host", "nfs://host/", "nfs://host:2049/x", "nfs://host/x?uid=0", "nfs:///x"),
        *("http:///x", "http://u:p@host/x", "https://host/x y", "ftp://host/x#part"),
    ],
)
def test_what_is_no_uri(uri: str) -> None:
    """Everything else is refused in one line of words; a password is never repeated."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        parse_uri(uri)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value).replace("for secrets", "")


def test_drivers_that_only_read() -> None:
    """What comes over the web cannot be written."""
    assert {parse_uri(f"{scheme}://h/x")["driver"] for scheme in READ_ONLY_DRIVERS} == {"http", "https", "ftp", "ftps"}


@pytest.mark.qemu
def test_disks_of_an_instance(host: Any) -> None:
    """A disk that can only be read must say so, and a bad URI is found where it stands."""
    disks = [
        {"uri": "https://w.example/disk.raw", "format": "raw"},
        {"uri": "nbd://host:0/x", "format": "raw"},
        {"uri": "nbd://host/x", "format": "raw"},
    ]
    definition = {"name": "web1", "params": {"accel": "tcg"}, "disks": disks}
    findings = host.driver.validate_parameters(definition)
    assert [(found.code, found.path) for found in findings] == [
        ("contradiction", "disks[0].uri"),
        ("invalid-value", "disks[1].uri"),
    ]

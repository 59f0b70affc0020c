//! One node's port: who gets in by which certificate, what is answered, and what a reload does.

use serde_json::json;

use crate::authority::{Authority, curl, howdah, run, serial};
use crate::voters::{Voters, free_ports, until};

/// A node whose port speaks TLS, with an authority, a client's certificate and a stranger's.
fn node(verify_client: &str) -> (Voters, Authority) {
    let voters = Voters::new(1);
    let authority = Authority::new(voters.path(), "ca");
    authority.issue("n1", &["localhost", "127.0.0.1"]);
    authority.issue("admin", &[]);
    Authority::new(voters.path(), "other-ca").issue("stranger", &[]);
    let path = |name: &str| voters.path().join(name);
    voters.write(
        0,
        &json!({
            "restapi": {
                "certfile": path("n1.crt"), "keyfile": path("n1.key"), "cafile": path("ca.crt"),
                "verify_client": verify_client,
                "http_extra_headers": {"X-Frame-Options": "SAMEORIGIN", "X-Said": "without"},
                "https_extra_headers": {"X-Said": "with", "Strict-Transport-Security": "max-age=31536000"},
                "server_tokens": "productonly",
            },
        }),
    );
    let mut voters = voters;
    voters.start(0);
    let port = voters.ports[0];
    until("the port is open", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (voters, authority)
}

#[test]
fn with_optional_certificates_reading_is_free_and_changing_is_not() {
    let (voters, _) = node("optional");
    let (dir, url) = (voters.path().display(), format!("https://localhost:{}", voters.ports[0]));
    let ca = format!("--cacert {dir}/ca.crt");
    let said = curl(&format!("{ca} -D - {url}/patroni"));
    let text = said.out.to_lowercase();
    for line in ["x-said: with\r", "x-frame-options: sameorigin\r", "strict-transport-security: ", "server: howdah\r"] {
        assert!(text.contains(line), "{line:?} is not in {said:?}");
    }
    let by_http2 = curl(&format!("{ca} --http2 -o /dev/null {url}/patroni"));
    assert_eq!((by_http2.code, by_http2.out.trim()), (Some(0), "200"), "{by_http2:?}");
    let change = |who: &str| curl(&format!("{ca} {who} -X POST {url}/reload"));
    let refused = change("");
    assert!(refused.out.ends_with("403") && refused.out.contains("certificate"), "{refused:?}");
    let mine = format!("--cert {dir}/admin.crt --key {dir}/admin.key");
    let done = change(&mine);
    assert!(done.out.ends_with("202") || done.out.ends_with("200"), "{done:?}");
    let stranger = change(&format!("--cert {dir}/stranger.crt --key {dir}/stranger.key"));
    assert_ne!(stranger.code, Some(0), "a stranger's certificate was believed: {stranger:?}");
    // What REST protects is closed to etcd's API on the same port, which cannot tell connections apart.
    let config =
        format!("{ca} -X POST {url}/v3/kv/put -d {{\"key\":\"L3NlcnZpY2UvdGxzL2NvbmZpZw==\",\"value\":\"e30=\"}}");
    let put = curl(&config);
    assert!(put.out.contains("permission denied"), "{put:?}");
    assert!(curl(&format!("{url}/patroni")).err.contains("SSL certificate problem"));
    let plain = curl(&format!("http://localhost:{}/patroni", voters.ports[0]));
    assert!(plain.out.contains("use https://") && plain.out.ends_with("400"), "{plain:?}");
}

#[test]
fn without_a_required_certificate_nobody_is_heard() {
    let (voters, _) = node("required");
    let (dir, url) = (voters.path().display(), format!("https://localhost:{}", voters.ports[0]));
    let read = |who: &str| curl(&format!("--cacert {dir}/ca.crt {who} -o /dev/null {url}/liveness"));
    assert_ne!(read("").code, Some(0));
    assert_ne!(read(&format!("--cert {dir}/stranger.crt --key {dir}/stranger.key")).code, Some(0));
    let mine = read(&format!("--cert {dir}/admin.crt --key {dir}/admin.key"));
    assert_eq!((mine.code, mine.out.trim()), (Some(0), "200"), "{mine:?}");
    let file = |name: &str| format!("{dir}/{name}");
    let options = ["--cacert", &file("ca.crt"), "--cert", &file("admin.crt"), "--key", &file("admin.key")];
    let list = |extra: &[&str]| howdah(&[&["--url", &url, "list"], extra].concat());
    until("the command line sees the cluster", || list(&options).code == Some(0));
    assert!(list(&[]).err.contains("nobody here vouches"), "{:?}", list(&[]));
    let bare = list(&["--cacert", &file("ca.crt")]);
    assert!(bare.code == Some(1) && bare.err.contains("wants a certificate"), "{bare:?}");
    let by_address = format!("https://127.0.0.2:{}", voters.ports[0]);
    let elsewhere = howdah(&[&["--url", &by_address, "list"], &options[..]].concat());
    assert_eq!(elsewhere.code, Some(1), "{elsewhere:?}");
    let without = howdah(&["--url", &format!("http://localhost:{}", voters.ports[0]), "list"]);
    assert!(without.err.contains("answers with status 400"), "{without:?}");
}

#[test]
fn host_names_count_for_people_unless_they_say_otherwise() {
    let voters = Voters::new(1);
    let authority = Authority::new(voters.path(), "ca");
    authority.issue("n1", &["db.example"]);
    let path = |name: &str| voters.path().join(name);
    voters.write(
        0,
        &json!({"restapi": {"certfile": path("n1.crt"), "keyfile": path("n1.key"), "cafile": path("ca.crt")}}),
    );
    let mut voters = voters;
    voters.start(0);
    let file = voters.file(0);
    let list = |extra: &[&str]| howdah(&[&["-c", file.to_str().unwrap(), "list"], extra].concat());
    until("--insecure believes anybody", || list(&["-k"]).code == Some(0));
    assert!(list(&[]).err.contains("another host name"), "{:?}", list(&[]));
}

#[test]
fn new_files_are_shown_after_a_reload_and_bad_ones_never() {
    let (voters, authority) = node("optional");
    let (address, admin) = (format!("localhost:{}", voters.ports[0]), voters.path().join("admin.crt"));
    let first = serial(&address, &admin);
    assert!(!first.is_empty());
    let second = authority.issue("n1", &["localhost"]);
    assert_eq!(serial(&address, &admin), first, "files are read at a reload");
    voters.hang_up(0);
    until("SIGHUP shows the new certificate", || serial(&address, &admin) == second);
    std::fs::write(voters.path().join("n1.crt"), "no certificate\n").unwrap();
    let dir = voters.path().display();
    let post =
        format!("--cacert {dir}/ca.crt --cert {dir}/admin.crt --key {dir}/admin.key -X POST https://{address}/reload");
    let refused = curl(&post);
    assert!(refused.out.contains("n1.crt") && refused.out.contains("the old certificates stay"), "{refused:?}");
    assert!(!refused.out.ends_with("200") && !refused.out.ends_with("202"), "{refused:?}");
    assert_eq!(serial(&address, &admin), second);
    voters.hang_up(0);
    until("SIGHUP says so, too", || voters.logged(0).contains("the old certificates stay"));
    let third = authority.issue("n1", &["localhost"]);
    let done = curl(&post);
    assert!(done.out.ends_with("202") || done.out.ends_with("200"), "{done:?}");
    assert_eq!(serial(&address, &admin), third);
}

#[test]
fn a_node_with_bad_certificates_does_not_start() {
    let voters = Voters::new(1);
    Authority::new(voters.path(), "ca").issue("n1", &["localhost"]);
    Authority::new(voters.path(), "ca").issue("n2", &["localhost"]);
    let path = |name: &str| voters.path().join(name);
    let tls = |patch| {
        voters.write(0, &json!({"restapi": patch}));
        howdah(&["run", voters.file(0).to_str().unwrap()]).err
    };
    assert!(tls(json!({"certfile": path("absent")})).contains("absent"));
    let unlike = tls(json!({"certfile": path("n1.crt"), "keyfile": path("n2.key")}));
    assert!(unlike.contains("n1.crt"), "{unlike}");
    let ciphers = tls(json!({"certfile": path("n1.crt"), "keyfile": path("n1.key"), "ciphers": "RC4-MD5"}));
    assert!(ciphers.contains("selects no suite"), "{ciphers}");
}

#[test]
fn etcds_clients_find_tls_where_etcd_has_it() {
    let voters = Voters::new(1);
    let etcd = format!("127.0.0.1:{}", free_ports(1)[0]);
    let authority = Authority::new(voters.path(), "ca");
    authority.issue("etcd", &["127.0.0.1"]);
    authority.issue("client", &[]);
    let path = |name: &str| voters.path().join(name);
    voters.write(
        0,
        &json!({"etcd": {
            "listen": etcd, "cert_file": path("etcd.crt"), "key_file": path("etcd.key"),
            "trusted_ca_file": path("ca.crt"), "client_cert_auth": true,
        }}),
    );
    let mut voters = voters;
    voters.start(0);
    let etcdctl = |args: &[&str]| {
        let mut command = std::process::Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{etcd}")).arg("--command-timeout=3s");
        run(command.args(args))
    };
    let dir = voters.path().display().to_string();
    let all = [format!("--cacert={dir}/ca.crt"), format!("--cert={dir}/client.crt"), format!("--key={dir}/client.key")];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let put = [&all[..], &["put", "greeting", "hello"]].concat();
    until("etcdctl writes", || etcdctl(&put).out == "OK\n");
    assert_eq!(etcdctl(&[&all[..], &["get", "greeting"]].concat()).out, "greeting\nhello\n");
    assert_ne!(etcdctl(&[all[0], "get", "greeting"]).code, Some(0), "a client without a certificate was let in");
    // The main port of this node speaks none.
    let plain = curl(&format!("-o /dev/null http://{}/liveness", voters.address(0)));
    assert!(plain.out.ends_with("200"), "{plain:?}");
}

#[test]
fn a_cluster_moves_to_tls_node_by_node() {
    let mut voters = Voters::new(3);
    let authority = Authority::new(voters.path(), "ca");
    for name in ["n1", "n2", "n3"] {
        authority.issue(name, &["127.0.0.1"]);
    }
    let tls = |voters: &Voters, index: usize, more: serde_json::Value| {
        let path = |ending: &str| voters.path().join(format!("n{}.{ending}", index + 1));
        let mut patch = json!({
            "restapi": {"certfile": path("crt"), "keyfile": path("key"), "cafile": voters.path().join("ca.crt")},
            "ctl": {"cacert": voters.path().join("ca.crt")},
        });
        crate::voters::merge(&mut patch, &more);
        voters.write(index, &patch);
    };
    let list = |voters: &Voters, index: usize| {
        let file = voters.file(index);
        howdah(&["-c", file.to_str().unwrap(), "member", "list", "-f", "json"])
    };
    let whole = |voters: &Voters| {
        until("all three are in the store's quorum", || {
            (0..3).all(|index| {
                let scheme = if std::fs::read_to_string(voters.file(index)).unwrap().contains("certfile") {
                    "https"
                } else {
                    "http"
                };
                let url = format!("{scheme}://{}/v3/kv/range", voters.address(index));
                let read = curl(&format!("-k -X POST {url} -d {{\"key\":\"eA==\"}}"));
                read.out.ends_with("200")
            })
        });
    };
    for index in 0..3 {
        voters.write(index, &json!({}));
        voters.start(index);
    }
    whole(&voters);
    for index in 0..3 {
        voters.stop(index);
        tls(&voters, index, json!({"raft": {"allow_plaintext": true}}));
        voters.start(index);
        whole(&voters);
        let plain = curl(&format!("http://{}/patroni", voters.address(index)));
        assert!(plain.out.contains("use https://"), "only members are let in without TLS: {plain:?}");
    }
    for index in 0..3 {
        voters.stop(index);
        tls(&voters, index, json!({}));
        voters.start(index);
        whole(&voters);
    }
    let members = list(&voters, 0);
    assert_eq!(members.code, Some(0), "{members:?}");
}

//! The socket: who may speak, what garbage does, and that there is one guardian and one agent.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use howdah::guardian::{Error, Link};

use crate::world::{LONG, World, postmaster, status_until};

fn speak(world: &World) -> UnixStream {
    let stream = UnixStream::connect(&world.config.socket).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

fn next_line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_closes_the_connection_that_sent_it_and_no_other() {
    let world = World::new().await;
    let (guardian, _) = world.standby().await;
    let running = postmaster(&guardian.status());
    let closes = |bytes: &[u8]| {
        let mut stream = speak(&world);
        // The guardian may hang up before all is sent.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        // A reset instead of an end is a hang-up too.
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let answer = closes(b"GET / HTTP/1.1\r\n\r\n");
    assert!(answer.contains("malformed"), "{answer}");
    closes(b"\n");
    closes(&[0xff; 100]);
    closes(b"\xff\xff\n");
    closes(&vec![b'x'; 1024 * 1024]);
    closes(b"{\"v\":1,\"id\":1,\"request\":\"status\"");
    assert_eq!(postmaster(&guardian.status()), running);
    guardian.reload().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_guardian_does_not_know_is_refused_and_the_connection_stays() {
    let world = World::new().await;
    let (_guardian, _) = world.attach().await;
    let mut stream = speak(&world);
    stream.write_all(b"{\"v\":1,\"id\":41,\"request\":{\"make_tea\":{}}}\n").unwrap();
    let answer = next_line(&stream);
    assert!(answer.contains("\"id\":41") && answer.contains("malformed"), "{answer}");
    stream.write_all(b"{\"v\":2,\"id\":42,\"request\":\"status\"}\n").unwrap();
    let answer = next_line(&stream);
    assert!(answer.contains("\"id\":42") && answer.contains("\"speaks\":1"), "{answer}");
    stream.write_all(b"{\"v\":1,\"id\":43,\"request\":\"reload\"}\n").unwrap();
    assert!(next_line(&stream).contains("not_attached"));
    stream.write_all(b"{\"v\":1,\"id\":44,\"request\":\"status\"}\n").unwrap();
    assert!(next_line(&stream).contains("\"privileges\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_agent_wins_and_the_one_before_is_told() {
    let world = World::new().await;
    let (first, mut first_status) = world.standby().await;
    let (second, _) = world.attach().await;
    let told = status_until(&mut first_status, "it is told", |status| status.link == Link::Replaced).await;
    assert_eq!(told.pid, second.status().pid);
    assert!(matches!(first.reload().await, Err(Error::Replaced { .. })));
    second.reload().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_disturbs_nobody() {
    let world = World::new().await;
    let (guardian, _) = world.standby().await;
    let mut deaf = speak(&world);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut hung_up = false;
    for id in 0..100_000 {
        let line = format!("{{\"v\":1,\"id\":{id},\"request\":\"status\"}}\n");
        if deaf.write_all(line.as_bytes()).is_err() {
            hung_up = true;
            break;
        }
    }
    assert!(hung_up, "answers that nobody takes are limited");
    guardian.reload().await.unwrap();
    // More connections than the guardian keeps: the agent's is not the one that gives way.
    let crowd: Vec<_> = (0..30).map(|_| speak(&world)).collect();
    guardian.reload().await.unwrap();
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_guardian_is_refused_with_a_sentence() {
    let world = World::new().await;
    let (guardian, _) = world.attach().await;
    let attempt = |socket: &std::path::Path| {
        let done = Command::new(env!("CARGO_BIN_EXE_howdah"))
            .args(["guardian", "--name", "n1", "--socket"])
            .arg(socket)
            .arg("--data-dir")
            .arg(&world.data_dir)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(1));
        String::from_utf8(done.stderr).unwrap()
    };
    let said = attempt(&world.config.socket);
    assert!(said.contains(&format!("(pid {})", guardian.status().pid)) && said.contains("attach"), "{said}");
    let said = attempt(&world.config.socket.with_extension("other"));
    assert!(said.contains("data directory") && said.contains("another guardian"), "{said}");

    let mut other = world.config.clone();
    other.socket.set_extension("other");
    let error = howdah::guardian::Guardian::attach(other).await.unwrap_err();
    assert!(matches!(&error, Error::StartRefused { message } if message.contains("another guardian")), "{error}");
    assert_eq!(guardian.status().link, Link::Attached);
}

/// Parent, process group, session and terminal of a process, as `/proc/<pid>/stat` gives them (proc(5), fields 4-7).
fn family(pid: &str) -> [i64; 4] {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<i64> =
        stat.rsplit_once(") ").unwrap().1.split(' ').skip(1).take(4).map(|field| field.parse().unwrap()).collect();
    fields.try_into().unwrap_or_else(|_| panic!("{stat}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guardian_is_nobodys_child_and_its_socket_is_private() {
    let world = World::new().await;
    let (guardian, _) = world.attach().await;
    let status = guardian.status();
    println!("privileges here: {:?}", status.privileges);
    assert!(status.privileges.subreaper && status.privileges.tether);
    let pid = status.pid;
    let [parent, _group, session, terminal] = family(&pid.to_string());
    // Our own session comes from the same place: its leader may live outside this PID namespace (a container,
    // a build machine), and is 0 then, which getsid wrappers do not expect.
    let [_, _, our_session, _] = family("self");
    assert_ne!(parent, i64::from(std::process::id()));
    assert_ne!(session, our_session);
    assert_eq!(terminal, 0);
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), std::path::Path::new("/"));
    for stream in 0..3 {
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap();
        assert!(target.starts_with("/dev/null") || target.ends_with("guardian.log"), "{}", target.display());
    }
    assert_eq!(std::fs::metadata(&world.config.socket).unwrap().permissions().mode() & 0o777, 0o600);
}

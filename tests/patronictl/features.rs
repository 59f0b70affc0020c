//! Tags, slots, standby clusters, methods of the operator: each scenario of Patroni's own acceptance tests that is not about
//! failover alone. `src/docs/scenarios.md` says which test stands for which scenario.

use std::path::{Path, PathBuf};
use std::time::Duration;

use howdah::dev::rest;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, Options};
use crate::outside::Outside;

/// Changes a node's file, as a person with an editor does.
pub fn edit(cluster: &Cluster, name: &str, change: impl FnOnce(&mut Value)) {
    let path = cluster.node(name).yaml;
    let text = std::fs::read_to_string(&path).expect("the node's file");
    let mut tree: Value = serde_yaml_ng::from_str(&text).expect("valid YAML");
    change(&mut tree);
    std::fs::write(&path, serde_yaml_ng::to_string(&tree).expect("YAML")).expect("write the node's file");
}

/// Changes it and has it read again.
fn retag(cluster: &mut Cluster, name: &str, tags: &Value) {
    edit(cluster, name, |tree| tree["tags"] = tags.clone());
    cluster.signal_agent(name, Signal::HUP);
    cluster.until(&format!("{name} has the tags {tags}"), LIMIT, |c| {
        get(c, name, "/patroni")["tags"] == *tags || (tags == &json!({}) && get(c, name, "/patroni")["tags"].is_null())
    });
}

fn get(cluster: &Cluster, name: &str, path: &str) -> Value {
    rest::get(cluster.node(name).rest, path, Duration::from_secs(5)).map(|answer| answer.json()).unwrap_or_default()
}

pub fn status(cluster: &Cluster, name: &str, path: &str) -> u16 {
    rest::get(cluster.node(name).rest, path, Duration::from_secs(5)).map_or(0, |answer| answer.status)
}

fn patch(cluster: &Cluster, name: &str, body: &Value) {
    let answer = rest::patch(cluster.node(name).rest, "/config", body, LIMIT).expect("an answer");
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
}

fn switch(cluster: &Cluster, leader: &str, candidate: &str) {
    cluster.until("the candidate has read in the record that it runs", LIMIT, |c| {
        c.seen().iter().any(|seen| seen.name == candidate && seen.knows(candidate))
    });
    let body = json!({"leader": leader, "candidate": candidate});
    let answer = rest::post(cluster.node(candidate).rest, "/switchover", &body, LIMIT).expect("an answer");
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, cluster.diagnosis());
}

fn one(cluster: &Cluster, name: &str, sql: &str) -> String {
    cluster.sql(name, sql).ok().and_then(|rows| rows.first().cloned()).unwrap_or_default()
}

fn sql(cluster: &Cluster, name: &str, sql: &str) -> Vec<String> {
    cluster.sql(name, sql).unwrap_or_else(|error| panic!("{sql}: {error}\n{}", cluster.diagnosis()))
}

fn streams_from(cluster: &Cluster, upstream: &str, name: &str) -> bool {
    let question = format!("select state from pg_stat_replication where application_name = '{name}'");
    one(cluster, upstream, &question) == "streaming"
}

fn slots(cluster: &Cluster, name: &str) -> Vec<String> {
    cluster.sql(name, "select slot_name from pg_replication_slots order by 1").unwrap_or_default()
}

/// Boots a cluster whose nodes' files have been changed first; waits until one leads.
fn boot(title: &str, change: impl Fn(&str, &mut Value)) -> Cluster {
    let mut cluster = Cluster::prepare(title, &Options::default());
    for name in cluster.names() {
        edit(&cluster, &name, |tree| change(&name, tree));
    }
    for name in cluster.names() {
        cluster.start_agent(&name);
    }
    cluster
}

#[test]
fn tags_cascading_and_priorities() {
    let mut cluster = Cluster::boot("tags");
    let primary = cluster.expect_primary();
    let [near, far]: [String; 2] = cluster.others(&primary).try_into().expect("three nodes");
    // Cascading: the far one takes its WAL from the near one, and has its slot there.
    retag(&mut cluster, &far, &json!({"replicatefrom": near}));
    cluster.until("the far one streams from the near one", LIMIT, |c| streams_from(c, &near, &far));
    assert_eq!(
        one(&cluster, &near, &format!("select active from pg_replication_slots where slot_name = '{far}'")),
        "t"
    );
    sql(&cluster, &primary, "create table cascade as select generate_series(1, 1000) as i");
    let reached = one(&cluster, &primary, "select pg_current_wal_lsn()");
    cluster.until("what was written arrives over two hops", LIMIT, |c| {
        one(c, &far, "select count(*) from cascade") == "1000"
    });
    let moved = format!("select restart_lsn >= '{reached}' from pg_replication_slots where slot_name = '{far}'");
    cluster.until("the unused slot at the primary follows the used one", LIMIT, |c| one(c, &primary, &moved) == "t");
    // Its source goes: it follows the primary, and its source again when that is back.
    cluster.kill_node(&near);
    cluster.until("the far one streams from the primary", LIMIT, |c| streams_from(c, &primary, &far));
    cluster.start_agent(&near);
    cluster.until("the far one streams from the near one again", LIMIT, |c| streams_from(c, &near, &far));
    // Priority 0 blocks.
    retag(&mut cluster, &far, &json!({"failover_priority": 0}));
    cluster.until_replica(&far);
    cluster.until_replica(&near);
    let refused = json!({"leader": primary, "candidate": far});
    let answer = rest::post(cluster.node(&far).rest, "/switchover", &refused, LIMIT).expect("an answer");
    assert_eq!(answer.status, 412, "{}", answer.body);
    cluster.until("the near one alone may lead", LIMIT, |c| {
        let sync = get(c, &primary, "/howdah").pointer("/snapshot/cluster/sync/standbys").cloned();
        sync == Some(json!([near]))
    });
    cluster.kill_node(&primary);
    cluster.until("the near one leads", LIMIT, |c| c.primary() == Some(near.clone()));
    cluster.start_agent(&primary);
    // Between equals the higher one leads, at a failover and when nobody is named.
    retag(&mut cluster, &far, &json!({"failover_priority": 5}));
    cluster.until_healthy();
    cluster.until("the preferred one is known", LIMIT, |c| {
        get(c, &near, "/cluster").to_string().contains("\"failover_priority\":5")
    });
    let answer =
        rest::post(cluster.node(&near).rest, "/switchover", &json!({"leader": near}), LIMIT).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    cluster.until("the preferred one leads", LIMIT, |c| c.primary() == Some(far.clone()));
    cluster.until_healthy();
    switch(&cluster, &far, &primary);
    cluster.until("the first one leads again", LIMIT, |c| c.primary() == Some(primary.clone()));
    cluster.until_healthy();
    let same = one(&cluster, &primary, "select pg_current_wal_lsn()");
    cluster.until("both have everything", LIMIT, |c| {
        [&near, &far].iter().all(|name| one(c, name, "select pg_last_wal_receive_lsn()") >= same)
    });
    cluster.kill_node(&primary);
    cluster.until("somebody leads", LIMIT, |c| c.primary().is_some());
    assert_eq!(cluster.expect_primary(), far, "{}", cluster.diagnosis());
}

#[test]
fn permanent_logical_and_ignored_slots() {
    let mut cluster = boot("slots", |_, tree| {
        tree["bootstrap"]["dcs"]["postgresql"]["parameters"] = json!({"wal_level": "logical"});
        tree["bootstrap"]["dcs"]["member_slots_ttl"] = json!("4s");
        tree["bootstrap"]["dcs"]["ignore_slots"] = json!([{"name": "mine", "type": "physical"}]);
    });
    cluster.until_healthy();
    let primary = cluster.expect_primary();
    let [a, b]: [String; 2] = cluster.others(&primary).try_into().expect("three nodes");
    sql(&cluster, &primary, "create table t (i int); create publication p for table t");
    sql(&cluster, &primary, "select pg_create_physical_replication_slot('mine', true)");
    let wanted = json!({"slots": {
        "backup": {"type": "physical"},
        "cdc": {"type": "logical", "database": "postgres", "plugin": "pgoutput"},
    }});
    patch(&cluster, &a, &wanted);
    let everybody = cluster.names();
    cluster.until("everybody has the permanent slots", LIMIT, |c| {
        everybody.iter().all(|name| ["backup", "cdc"].iter().all(|slot| slots(c, name).contains(&(*slot).to_owned())))
    });
    for name in &everybody {
        for member in everybody.iter().filter(|member| *member != name) {
            assert!(slots(&cluster, name).contains(member), "{name} keeps no slot for {member}");
        }
    }
    // What is consumed at the primary is let go everywhere.
    cluster.until_healthy();
    let consume = "select count(*) from pg_logical_slot_get_binary_changes('cdc', null, null, 'proto_version', '1', \
                   'publication_names', 'p')";
    sql(&cluster, &primary, "insert into t select generate_series(1, 100)");
    assert!(one(&cluster, &primary, consume).parse::<u32>().expect("a number") >= 100);
    let at = "select confirmed_flush_lsn from pg_replication_slots where slot_name = 'cdc'";
    let consumed = one(&cluster, &primary, at);
    let reached =
        format!("select confirmed_flush_lsn >= '{consumed}' from pg_replication_slots where slot_name = 'cdc'");
    cluster
        .until("the copies of the slot follow", LIMIT, |c| one(c, &a, &reached) == "t" && one(c, &b, &reached) == "t");
    // A change of the leader: nothing is lost, nothing comes twice.
    sql(&cluster, &primary, "insert into t values (1000)");
    switch(&cluster, &primary, &a);
    cluster.until("the candidate leads", LIMIT, |c| c.primary() == Some(a.clone()));
    cluster.until_healthy();
    sql(&cluster, &a, "insert into t values (1001)");
    let peek = consume.replace("count(*)", "encode(data, 'escape')").replace("get_binary", "peek_binary");
    let changes = sql(&cluster, &a, &peek).join("\n");
    assert!(changes.contains("1000") && changes.contains("1001"), "a change is missing: {changes}");
    // The former primary still has the slot that is none of our business.
    assert!(slots(&cluster, &primary).contains(&"mine".to_owned()));
    // A member that stays away loses its slot in the end, everywhere; not before.
    cluster.kill_node(&b);
    cluster.until("the silent member is retained", LIMIT, |c| {
        get(c, &a, "/cluster")["members"].as_array().is_some_and(|members| members.len() == 2)
            && slots(c, &a).contains(&b)
    });
    cluster.until("its slot is gone", LIMIT, |c| !slots(c, &a).contains(&b) && !slots(c, &primary).contains(&b));
    for keeper in [&a, &primary] {
        let log = std::fs::read_to_string(cluster.node(keeper).log).expect("its log");
        let dropped = log.lines().filter(|line| line.contains("slot dropped") && line.ends_with(&format!("slot={b}")));
        assert_eq!(dropped.count(), 1, "{keeper} let go of the slot before its time, or twice:\n{log}");
    }
    cluster.start_agent(&b);
    cluster.until_replica(&b);
    assert!(slots(&cluster, &a).contains(&b));
    // Taken out of the settings, they go, also from a node that was away when they were.
    cluster.until("everybody has the permanent slot", LIMIT, |c| slots(c, &b).contains(&"backup".to_owned()));
    cluster.kill_node(&b);
    patch(&cluster, &a, &json!({"slots": null}));
    let gone = |c: &Cluster, name: &str| !slots(c, name).iter().any(|slot| slot == "backup" || slot == "cdc");
    cluster.until("the permanent slots are gone", LIMIT, |c| [&a, &primary].iter().all(|name| gone(c, name)));
    cluster.start_agent(&b);
    cluster.until_replica(&b);
    cluster.until("they are gone from the last one", LIMIT, |c| gone(c, &b));
}

#[test]
fn a_standby_cluster_is_created_changed_promoted_and_demoted() {
    let cluster = Cluster::prepare("standby-cluster", &Options::default());
    let mut outside = Outside::create(&cluster);
    outside.sql("create table before as select generate_series(1, 100) as i");
    let mut cluster = cluster;
    for name in cluster.names() {
        let address = outside.port();
        edit(&cluster, &name, |tree| {
            tree["bootstrap"]["dcs"]["standby_cluster"] = json!({"host": "127.0.0.1", "port": address});
        });
        cluster.start_agent(&name);
    }
    let leads = |c: &Cluster| {
        c.names().into_iter().find(|name| {
            let seen = get(c, name, "/patroni");
            seen["role"] == "standby_leader" && seen["state"] == "running" && seen["replication_state"] == "streaming"
        })
    };
    let follows = |c: &Cluster, leader: &str| c.others(leader).iter().all(|name| streams_from(c, leader, name));
    cluster.until("there is a standby leader that all others follow", LIMIT, |c| {
        leads(c).is_some_and(|leader| follows(c, &leader))
    });
    let first = leads(&cluster).expect("it leads");
    assert_eq!(status(&cluster, &first, "/standby-leader"), 200);
    assert_eq!(status(&cluster, &first, "/leader"), 200);
    assert_eq!(status(&cluster, &first, "/primary"), 503);
    outside.sql("create table after as select generate_series(1, 200) as i");
    let [second, third]: [String; 2] = cluster.others(&first).try_into().expect("three nodes");
    cluster.until("what is written outside arrives everywhere", LIMIT, |c| {
        [&first, &second, &third].iter().all(|name| one(c, name, "select count(*) from after") == "200")
    });
    // A switchover, and the loss of its node.
    switch(&cluster, &first, &second);
    cluster.until("the candidate leads", LIMIT, |c| leads(c) == Some(second.clone()) && follows(c, &second));
    cluster.kill_node(&second);
    cluster.until("another one leads", LIMIT, |c| leads(c).is_some_and(|leader| leader != second));
    cluster.start_agent(&second);
    cluster.until("the lost one follows again", LIMIT, |c| leads(c).is_some_and(|leader| follows(c, &leader)));
    // Promoted: the outside is cut off.
    outside.stop();
    let leader = leads_any(&cluster);
    let file = cluster.node(&leader).yaml.display().to_string();
    let ran = howdah(&["-c", &file, "promote-cluster", "--force"]);
    assert_eq!((ran.0, ran.1.as_str()), (0, "Success: cluster is promoted\n"), "{}", ran.2);
    cluster.until_healthy();
    assert_eq!(cluster.expect_primary(), leader);
    sql(&cluster, &leader, "create table ours as select generate_series(1, 300) as i");
    // Demoted: somebody outside takes over what was written here, and we follow.
    outside.become_standby_of(&cluster, &leader);
    patch(&cluster, &leader, &json!({"standby_cluster": {"host": "127.0.0.1", "port": outside.port()}}));
    cluster
        .until("the former primary is a standby", LIMIT, |c| get(c, &leader, "/patroni")["role"] == "standby_leader");
    outside.promote();
    outside.sql("create table theirs as select generate_series(1, 400) as i");
    cluster.until("what is written outside arrives everywhere again", LIMIT, |c| {
        c.names().iter().all(|name| one(c, name, "select count(*) from theirs") == "400")
    });
    outside.stop();
}

fn howdah(arguments: &[&str]) -> (i32, String, String) {
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_howdah")).args(arguments).output().expect("start howdah");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn leads_any(cluster: &Cluster) -> String {
    let roles = cluster.names().into_iter().find(|name| get(cluster, name, "/patroni")["role"] == "standby_leader");
    roles.unwrap_or_else(|| panic!("nobody leads\n{}", cluster.diagnosis()))
}

/// A script of the operator, readable for PostgreSQL's user.
fn script(dir: &Path, name: &str, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\nset -e\n{text}\n")).expect("write the script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    path.display().to_string()
}

/// A directory that PostgreSQL's user may fill.
fn writable(dir: &Path, name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::create_dir(&path).expect("a directory");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("permissions");
    path
}

#[test]
fn the_operators_commands_create_copy_promote_and_stop() {
    let mut cluster = Cluster::prepare("commands", &Options::default());
    let dir = cluster.layout.dir.clone();
    let mut outside = Outside::create(&cluster);
    outside.sql("create table backed_up as select generate_series(1, 100) as i");
    outside.stop();
    let notes = writable(&dir, "notes");
    let archive = writable(&dir, "archive");
    let note = |line: &str| format!("echo \"{line}\" >> {}/log", notes.display());
    let restore = script(
        &dir,
        "restore",
        &format!(
            "{}\nfor w in \"$@\"; do case $w in --datadir=*) cp -a {}/. ${{w#--datadir=}};; esac; done",
            note("restore $*"),
            outside.data().display()
        ),
    );
    let post = script(
        &dir,
        "post",
        &format!("{}\npsql -X \"$1\" -c 'create table made_by_post (i int)'", note("post $PGOPTIONS")),
    );
    let copy = script(
        &dir,
        "copy",
        &format!(
            "{}\nfor w in \"$@\"; do case $w in --datadir=*) d=${{w#--datadir=}};; --connstring=*) c=${{w#--connstring=}};; esac; done\n\
             pg_basebackup -X stream -c fast -w -D $d -d \"$c\"",
            note("copy $*")
        ),
    );
    let ask = script(&dir, "ask", &format!("{}\ntest ! -e {}/no-$1", note("ask $1"), notes.display()));
    let before = script(&dir, "before", &note("before $1"));
    for name in cluster.names() {
        edit(&cluster, &name, |tree| {
            tree["bootstrap"]["method"] = json!("restore");
            tree["bootstrap"]["restore"] = json!({"command": restore, "level": "full"});
            tree["bootstrap"]["post_bootstrap"] = json!(post);
            tree["bootstrap"]["dcs"]["postgresql"]["parameters"] = json!({
                "archive_mode": "on", "archive_command": format!("cp %p {}/%f", archive.display()),
            });
            tree["postgresql"]["create_replica_methods"] = json!(["broken", "tape", "basebackup"]);
            tree["postgresql"]["broken"] = json!({"command": "/bin/false"});
            tree["postgresql"]["tape"] = json!({"command": copy, "drive": 7});
            tree["postgresql"]["pre_promote"] = json!(format!("{ask} {name}"));
            tree["postgresql"]["before_stop"] = json!(format!("{before} {name}"));
        });
    }
    for name in cluster.names() {
        cluster.start_agent(&name);
    }
    cluster.until_healthy();
    let log = || std::fs::read_to_string(notes.join("log")).unwrap_or_default();
    let primary = cluster.expect_primary();
    assert_eq!(one(&cluster, &primary, "select count(*) from backed_up"), "100");
    assert_eq!(one(&cluster, &primary, "select count(*) from made_by_post"), "0");
    let written = log();
    assert!(written.contains("restore --level=full --scope=commands --datadir="), "{written}");
    assert!(written.contains("copy --drive=7 --scope=commands --role=replica --datadir="), "{written}");
    assert!(written.contains("post -c synchronous_commit=local"), "{written}");
    // A node without streaming keeps up by the archive.
    let [a, b]: [String; 2] = cluster.others(&primary).try_into().expect("three nodes");
    edit(&cluster, &b, |tree| {
        tree["tags"] = json!({"nostream": true});
        tree["postgresql"]["recovery_conf"] = json!({"restore_command": format!("cp {}/%f %p", archive.display())});
    });
    cluster.signal_agent(&b, Signal::HUP);
    cluster.until("it does not stream any more", LIMIT, |c| !streams_from(c, &primary, &b));
    sql(
        &cluster,
        &primary,
        "set synchronous_commit = local; create table archived as select generate_series(1, 50) as i",
    );
    sql(&cluster, &primary, "select pg_switch_wal()");
    // restore_command counts at once from PostgreSQL 14 on.
    cluster.until("the archive has brought it", LIMIT, |c| one(c, &b, "select count(*) from archived") == "50");
    assert_eq!(status(&cluster, &b, "/replica"), 200);
    retag(&mut cluster, &b, &json!({}));
    cluster.until_healthy();
    // The command says no: that node stands aside, another one leads; before_stop has run.
    std::fs::write(notes.join(format!("no-{a}")), "").expect("a file");
    let candidates =
        rest::post(cluster.node(&a).rest, "/switchover", &json!({"leader": primary, "candidate": a}), LIMIT);
    assert!(candidates.is_ok());
    cluster.until("another one than the refused leads", LIMIT, |c| {
        c.primary().is_some_and(|leader| leader != a) && log().contains(&format!("ask {a}"))
    });
    assert!(log().contains(&format!("before {primary}")), "{}", log());
    std::fs::remove_file(notes.join(format!("no-{a}"))).expect("the file");
    cluster.until_healthy();
    assert_eq!(one(&cluster, &cluster.expect_primary(), "select count(*) from archived"), "50");
}

/// A named pipe in the place of a device: it shows what a device would be told.
#[test]
fn a_watchdog_is_armed_while_the_node_may_write_and_sleeps_otherwise() {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let options = Options { nodes: 1, ..Options::default() };
    let mut cluster = Cluster::prepare("watchdog", &options);
    let pipe = cluster.layout.dir.join("watchdog");
    let made = std::process::Command::new("mkfifo").arg("-m").arg("666").arg(&pipe).status().expect("start mkfifo");
    assert!(made.success());
    edit(&cluster, "n1", |tree| {
        tree["watchdog"] = json!({"mode": "required", "driver": "testing", "device": pipe});
    });
    // Nobody reads the pipe, so it cannot be opened, and without a watchdog nobody may write.
    cluster.start_agent("n1");
    cluster.until("the missing watchdog is named", LIMIT, |c| {
        let log = std::fs::read_to_string(c.node("n1").log).unwrap_or_default();
        log.contains("watchdog") && log.contains("required")
    });
    assert_eq!(cluster.primary(), None);
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let reader = std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(&pipe).expect("the pipe");
    let heard = std::cell::RefCell::new(String::new());
    let listen = || {
        let mut buffer = [0; 4096];
        while let Ok(read) = (&reader).read(&mut buffer) {
            if read == 0 {
                break;
            }
            heard.borrow_mut().push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        heard.borrow().clone()
    };
    cluster.until("the node may write, and the device is armed and petted", LIMIT, |c| {
        c.primary().is_some() && listen().starts_with("timeout=4\n\n\n")
    });
    assert!(!listen().contains('V'), "it was put to sleep while the node may write: {}", listen());
    cluster.signal_agent("n1", Signal::TERM);
    cluster.until("the device is put to sleep once PostgreSQL has stopped", LIMIT, |c| {
        !c.postgres_lives("n1") && listen().ends_with('V')
    });
}

#[test]
fn the_dashboard_has_a_port_of_its_own() {
    let mut cluster = Cluster::prepare("own-port", &Options { nodes: 1, ..Options::default() });
    let (taken, _) = howdah::dev::ports::choose(11_000, 1, &mut Vec::new(), howdah::dev::ports::is_free);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], taken[0]));
    edit(&cluster, "n1", |tree| tree["dashboard"] = json!({"listen": address.to_string()}));
    cluster.start_agent("n1");
    cluster.until("the node writes", LIMIT, |c| c.primary().is_some());
    let asked = |path: &str| rest::get(address, path, LIMIT).expect("an answer");
    assert_eq!(asked("/").status, 307);
    assert!(asked("/ui").body.contains("<html"), "{}", asked("/ui").body);
    assert_eq!(asked("/primary").status, 200, "REST answers here as well");
}

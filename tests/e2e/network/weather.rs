//! Bad weather on every link between nodes: lost packets, slow packets, and a dead primary in the middle of it.

use std::time::Duration;

use serde_json::json;

use crate::cluster::{Cluster, Options, now, timing};
use crate::log_gate::LogGate;
use crate::report::measured;

use super::rounds::{Rounds, until_passed};
use super::switch::Weather;
use super::{Lan, soak, soak_span};

/// Under bad weather connections come and go.
const ROUGH: [&str; 2] = ["connection closed during the handshake", "the node's lease has expired"];

/// How long a cluster must stand it.
fn span() -> Duration {
    if soak() { soak_span() } else { Duration::from_secs(6) }
}

#[test]
fn lost_packets_move_nothing_and_a_failover_succeeds_in_spite_of_them() {
    Lan::with("loss", 3, |lan| {
        let mut rounds = Rounds::begin("loss", Cluster::boot_with("loss", &lan.options()));
        endure(&mut rounds, lan, "5 % lost", Weather { loss_percent: 5.0, ..Weather::default() });
        if soak() {
            let near = Duration::from_millis(40);
            endure(
                &mut rounds,
                lan,
                "40 ms each way",
                Weather { delay: near, jitter: near / 10, ..Weather::default() },
            );
            endure(&mut rounds, lan, "10 % lost", Weather { loss_percent: 10.0, ..Weather::default() });
        }
        let cluster = rounds.judge();
        LogGate::new().allow_all("*", &ROUGH).check(&cluster);
    });
}

/// How a cluster must be set up whose members are so far apart: an election timeout is more than two round trips.
struct Distance {
    each_way: Duration,
    election_timeout: &'static str,
    /// Seconds: `ttl`, `loop_wait`, `retry_timeout`.
    times: [f64; 3],
}

const OTHER_COAST: Distance =
    Distance { each_way: Duration::from_millis(100), election_timeout: "500ms..1s", times: [8.0, 1.0, 3.0] };
const OTHER_SIDE_OF_THE_WORLD: Distance =
    Distance { each_way: Duration::from_millis(200), election_timeout: "1s..2s", times: [12.0, 2.0, 5.0] };

#[test]
fn members_far_apart_fail_over_with_times_that_allow_for_it() {
    Lan::with("far-apart", 3, |lan| {
        far_apart(lan, &OTHER_COAST);
        if soak() {
            far_apart(lan, &OTHER_SIDE_OF_THE_WORLD);
        }
    });
}

fn far_apart(lan: &Lan, distance: &Distance) {
    let Distance { each_way: delay, election_timeout, times: [ttl, loop_wait, retry] } = *distance;
    let options = Options { settings: timing(ttl, loop_wait, retry), ..lan.options() };
    let mut cluster = Cluster::prepare("far-apart", &options);
    for name in cluster.names() {
        cluster.edit_yaml(&name, |tree| {
            tree["raft"]["election_timeout"] = json!(election_timeout);
        });
    }
    cluster.start();
    let mut rounds = Rounds::begin("far-apart", cluster);
    let what = format!("{delay:?} each way");
    endure(&mut rounds, lan, &what, Weather { delay, ..Weather::default() });
    if soak() {
        let rough = Weather { delay, jitter: delay / 10, loss_percent: 2.0 };
        endure(&mut rounds, lan, &format!("{what}, 2 % lost"), rough);
    }
    let cluster = rounds.judge();
    LogGate::new().allow_all("*", &ROUGH).allow("*", "is honoured, but host loss then costs").check(&cluster);
}

/// Bad weather moves nothing; the loss of the primary's node in it is got over. Its return is left to better weather: a
/// rewind over a bad network takes its time; `make soak` has it.
fn endure(rounds: &mut Rounds, lan: &Lan, what: &str, weather: Weather) {
    let before = lan.traffic();
    let watch = |rounds: &Rounds| until_passed(&rounds.cluster, now(), span());
    rounds.stays(what, |_, _| lan.set_weather(weather), watch, |_, _| {});
    let after = lan.traffic();
    let (forwarded, dropped) = (after.forwarded - before.forwarded, after.dropped - before.dropped);
    measured(&format!("{what}: {forwarded} packets, {dropped} lost"));
    let what = format!("{what}, and the primary's node killed");
    let back = |cluster: &mut Cluster, old: &str| {
        if !soak() {
            lan.set_weather(Weather::default());
        }
        cluster.start_agent(old);
    };
    rounds.moves(&what, |cluster, old| cluster.kill_node(old), back);
    lan.set_weather(Weather::default());
}

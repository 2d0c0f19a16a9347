//! Services in a program that uses the library.

use std::time::Duration;

use pinfold::services::{
    Condition, Failure, LogFile, Ready, Restart, Service, ServiceEventKind, ServiceEvents, Services, State,
};
use pinfold::{Command, Readiness, Signal};

use crate::support::events::Process;
use crate::support::host::{shell, with_supervisor};

fn service(name: &str, script: &str) -> Service {
    Service::new(name, shell(script))
}

/// A service that is ready when its script prints `ready`.
fn listening(name: &str, script: &str) -> Service {
    service(name, script).ready(Readiness::line("ready"))
}

/// Returns the process of the next job of a service.
async fn next_start(events: &mut ServiceEvents, name: &str) -> i32 {
    loop {
        let event = events.next_event().await.expect("a start");
        if let ServiceEventKind::Started { pid, .. } = event.kind
            && *event.service == *name
        {
            return pid;
        }
    }
}

/// Returns the names of the events that remain, each with its service. The events must end.
async fn rest(events: &mut ServiceEvents) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(event) = events.next_event().await {
        let kind = serde_json::to_value(&event.kind).unwrap();
        all.push(format!("{} {}", event.service, kind["event"].as_str().unwrap()));
    }
    all
}

#[test]
#[requires(cgroup)]
fn events_follow_the_dependencies_in_both_directions() {
    with_supervisor(async |supervisor| {
        let builder = Services::builder()
            .service(service("web", "exec sleep 1000").depends_on("init", Condition::Finished))
            .service(service("init", "exit 0").one_shot(true).depends_on("db", Condition::Ready))
            .service(listening("db", "echo ready; exec sleep 1000"));
        let services = builder.build(supervisor).unwrap();
        let mut events = services.events();
        services.start_all();
        services.ready().await.unwrap();
        let states: Vec<_> = services.status().iter().map(|one| one.state).collect();
        assert_eq!(states, [State::Ready, State::Finished, State::Ready]);
        services.stop().await;
        let expected = [
            "db starting",
            "db started",
            "db ready",
            "init starting",
            "init started",
            "init finished",
            "web starting",
            "web started",
            "web ready",
            "web stopping",
            "web finished",
            "db stopping",
            "db finished",
        ];
        assert_eq!(rest(&mut events).await, expected);
        assert!(services.restart("web").unwrap_err().to_string().contains("being stopped"));
    });
}

#[test]
#[requires(cgroup)]
fn a_restart_begins_when_the_old_instance_is_gone() {
    with_supervisor(async |supervisor| {
        let script = "echo begins $$; (setsid sh -c 'setsid sleep 1000 & exit 0' &); echo ready; exit 0";
        let services = Services::builder().service(listening("daemon", script)).build(supervisor).unwrap();
        let mut events = services.events();
        services.start_all();
        services.ready().await.unwrap();
        for _ in 0..3 {
            let begun = next_start(&mut events, "daemon").await;
            let process = Process::of(begun);
            // The main process has ended. The daemon that it left is the service now.
            while !matches!(events.next_event().await.unwrap().kind, ServiceEventKind::Note { .. }) {}
            process.wait_for_end();
            assert_eq!(services.status()[0].state, State::Ready);
            services.restart("daemon").unwrap();
            services.ready_some(&["daemon".into()]).await.unwrap();
        }
        let lines = services.last_lines("daemon", 100).unwrap();
        assert_eq!(lines.iter().filter(|line| line.line.text() == "ready").count(), 4);
        services.stop().await;
        assert!(services.status()[0].stopped);
        services.stopped().await;
    });
}

#[test]
#[requires(cgroup)]
fn some_services_stop_and_start_again() {
    with_supervisor(async |supervisor| {
        let builder = Services::builder()
            .service(service("a", "exec sleep 1000"))
            .service(service("b", "exec sleep 1000").depends_on("a", Condition::Started));
        let services = builder.build(supervisor).unwrap();
        let mut events = services.events();
        services.start_all();
        let a = Process::of(next_start(&mut events, "a").await);
        next_start(&mut events, "b").await;
        services.stop_some(&["a".into()]).await.unwrap();
        a.wait_for_end();
        let states: Vec<_> = services.status().iter().map(|one| one.state).collect();
        assert_eq!(states, [State::Finished, State::Ready]);
        assert!(services.ready().await.unwrap_err().to_string().contains("a did not become ready: it was stopped"));
        // The restart of b waits for a.
        services.restart("b").unwrap();
        services.start("a").unwrap();
        services.ready().await.unwrap();
        assert!(services.start("c").is_err() && services.stop_some(&["c".into()]).await.is_err());
        services.start_stop_with(Signal::INT);
        services.stopped().await;
    });
}

/// Dropping the last clone kills the services, and no restart follows.
#[test]
#[requires(cgroup)]
fn dropped_services_are_killed() {
    with_supervisor(async |supervisor| {
        let stubborn = || service("a", "trap '' TERM; while :; do sleep 1000; done").restart(Restart::always());
        let services = Services::builder().service(stubborn()).build(supervisor).unwrap();
        let mut events = services.events();
        services.start_all();
        let process = Process::of(next_start(&mut events, "a").await);
        let clone = services.clone();
        drop(services);
        assert_eq!(clone.status()[0].state, State::Ready);
        drop(clone);
        assert_eq!(rest(&mut events).await.last().map(String::as_str), Some("a finished"));
        process.wait_for_end();
    });
}

#[test]
#[requires(cgroup)]
fn each_failure_has_its_kind_and_its_message() {
    with_supervisor(async |supervisor| {
        let soon = Duration::from_millis(50);
        let builder = Services::builder()
            .service(service("exits", "exit 3"))
            .service(Service::new("missing", Command::new("/no/such/program")))
            .service(listening("silent", "exec sleep 1000").ready_timeout(soon))
            .service(listening("early", "exit 0"))
            .service(service("late", "true").depends_on("missing", Condition::Ready))
            .service(service("quiet", "exec sleep 1000").watchdog(soon))
            .service(
                service("command", "exec sleep 1000")
                    .ready(Ready::command(shell("echo not yet; exit 4")))
                    .ready_timeout(soon * 10),
            );
        let services = builder.start(supervisor).unwrap();
        services.stopped().await;
        let all = services.status();
        assert!(all.iter().all(|one| one.state == State::Failed), "{all:#?}");
        let failures: Vec<_> = all.iter().map(|one| (one.failure.unwrap(), one.message.as_str())).collect();
        let [exits, missing, silent, early, late, quiet, command] = &failures[..] else { panic!("{failures:?}") };
        assert_eq!(*exits, (Failure::Exited, "it exited with 3"));
        assert_eq!(missing.0, Failure::NotStarted);
        assert!(missing.1.contains("No such file"), "{}", missing.1);
        assert_eq!(silent.0, Failure::NotReady);
        assert!(silent.1.contains("no line of its output contained 'ready' within 50ms"), "{}", silent.1);
        assert_eq!(*early, (Failure::NotReady, "it exited with 0 before it was ready"));
        assert_eq!(*late, (Failure::Dependency, "it depends on missing, which has ended"));
        assert_eq!(*quiet, (Failure::Unresponsive, "it sent no WATCHDOG=1 for 50ms"));
        assert_eq!(command.0, Failure::NotReady);
        assert!(command.1.contains("exited with 4: not yet"), "{}", command.1);
        services.stop().await;
    });
}

/// All output arrives, in order, also in the log file; a reader that comes later gets the last lines.
#[test]
#[requires(cgroup)]
fn all_output_arrives() {
    let scratch = crate::support::Scratch::directory("service-output");
    with_supervisor(async |supervisor| {
        let log = scratch.path().join("log");
        let one = service("one", "i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); echo $i; done").log(LogFile::new(&log));
        let services = Services::builder().service(one).build(supervisor).unwrap();
        let mut output = services.output();
        services.start_all();
        let mut expected = 1;
        while expected <= 5000 {
            let line = output.next_line().await.unwrap();
            assert_eq!(line.line.text(), expected.to_string());
            expected += 1;
        }
        services.stopped().await;
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=5000));
        let (lines, missed) = services.follow(&[], 3).unwrap().lines_so_far();
        assert_eq!((lines.len(), missed), (3, 0));
        services.stop().await;
        assert_eq!(output.next_line().await, None);
    });
}

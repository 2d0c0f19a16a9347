//! Mistakes in files of services: each message has the file and the line.

use super::*;
use crate::services::config::{Condition, RestartPolicy};

fn toml(text: &str) -> Result<Vec<Service>> {
    ServiceFile::parse("dir/pinfold.toml", text).map(|file| file.services)
}

fn mistake(text: &str) -> String {
    toml(text).unwrap_err().to_string().strip_prefix("dir/pinfold.toml:").expect("a place").to_owned()
}

#[test]
fn a_file_keeps_its_order_and_its_values() {
    let text = r#"
[services.web]
command = "exec ./serve --port $PORT"
env = { PORT = "80" }
depends_on = { db = "ready", migrate = "finished" }
restart = { policy = "always", backoff = "1s", limit = 3, within = 90 }
stop-signal = "INT"
grace = 2.5
limits = { memory = "64M" }

[services.db]
command = ["postgres", "-D", "data"]
cwd = "db"

[services.migrate]
command = "true"
one_shot = true
depends_on = ["db"]
"#;
    let all = toml(text).unwrap();
    assert!(all.iter().map(Service::name).eq(["web", "db", "migrate"]));
    let [web, db, migrate] = &all[..] else { panic!() };
    assert_eq!(web.command.get_args().collect::<Vec<_>>(), ["-c", "exec ./serve --port $PORT"]);
    assert_eq!(web.command.get_current_dir(), Some(Path::new("dir/")));
    let needs: Vec<_> = web.depends_on.iter().map(|need| (&*need.name, need.condition)).collect();
    assert_eq!(needs, [("db", Condition::Ready), ("migrate", Condition::Finished)]);
    assert_eq!((web.restart.policy, web.restart.limit), (RestartPolicy::Always, 3));
    assert_eq!(web.restart.within.as_secs(), 90);
    assert_eq!(web.command.stop.grace.as_millis(), 2500);
    assert_eq!(
        (db.command.get_program(), db.command.get_current_dir()),
        ("postgres".as_ref(), Some("dir/db".as_ref()))
    );
    assert!(migrate.one_shot && migrate.depends_on[0].condition == Condition::Ready);
}

#[test]
fn mistakes_in_toml_have_their_line() {
    let service = |rest: &str| format!("[services.web]\ncommand = \"true\"\n{rest}");
    for (text, message) in [
        (service("comand = 1"), "3: unknown key 'comand' (did you mean 'command'?)"),
        (service("restart = \"on-failur\""), "3: restart: 'on-failur' is not one of never, on-failure, always (did you mean 'on-failure'?)"),
        (service("restart = { polcy = \"never\" }"), "3: unknown key 'polcy' (did you mean 'policy'?)"),
        (service("depends_on = [\"wbe\"]"), "3: web depends on 'wbe', which is no service (did you mean 'web'?)"),
        (service("depends_on = {\n"), "3"),
        (service("env = { A = 1 }"), "3: env: invalid type: integer `1`, expected a string"),
        (service("grace = \"5M\""), "3: grace: write a duration"),
        (service("limits = { memroy = \"1G\" }"), "3: limits: unknown field `memroy`"),
        (service("stop_signal = \"TREM\""), "3: stop_signal: "),
        (service("\n[services.web]\ncommand = \"b\""), "4: duplicate key"),
        (service("\n[services.db]\n"), "4: db has no command"),
        (service("\n[service.db]\n"), "4: unknown key 'service' (did you mean 'services'?)"),
        (service("\n[services.\"a b\"]\ncommand = \"x\""), "4: 'a b' can't be the name of a service"),
        ("[services.a]\ncommand = \"\"".into(), "2: the command is empty"),
        ("[services]\na = 1".into(), "2: a: write a table: [services.a]"),
        ("services = 1".into(), "1: write a table for each service"),
        ("# nothing".into(), "1: it describes no service"),
        (
            "[services.a]\ncommand = 'a'\ndepends_on = { b = 'ready' }\n[services.b]\ncommand = 'b'\ndepends_on = [\n'a']".into(),
            "3: the dependencies form a cycle, so none of these services could start: a needs b needs a",
        ),
    ] {
        let found = mistake(&text);
        assert!(found.starts_with(message), "{text}\nfound    {found}\nexpected {message}");
    }
}

#[test]
fn a_procfile_has_one_service_in_each_line() {
    let read = |text: &str| ServiceFile::parse("Procfile", text).map(|file| file.services);
    let all = read("# comment\nweb: bundle exec rails s -p $PORT\n\nworker-1:  sleep 1: 2\n").unwrap();
    let words = |service: &Service| {
        let mut envs = service.command.get_envs();
        let (script, (key, port)) = (service.command.get_args().nth(1).unwrap(), envs.next().unwrap());
        assert_eq!(key, "PORT");
        format!("{}={} {}", service.name, script.display(), port.unwrap().display())
    };
    assert_eq!(
        all.iter().map(words).collect::<Vec<_>>(),
        ["web=bundle exec rails s -p $PORT 5000", "worker-1=sleep 1: 2 5100"]
    );
    for (text, message) in [
        ("web: a\nweb: b", "Procfile:2: two services have the name 'web', the first one is in line 1"),
        ("a: b\nno service", "Procfile:2: write NAME: COMMAND"),
        ("a:", "Procfile:1: a has no command"),
    ] {
        let found = read(text).unwrap_err().to_string();
        assert!(found.starts_with(message), "{found}");
    }
}

//! The policy of a sandbox, as plain data.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spelling::Spelling;
use crate::error::{Error, Result};
use crate::report::Promise;

/// What a job may access. By default, a job may read and execute the system's programs and libraries. It has no
/// network, can't connect to sockets of other processes, and can't send signals to processes outside of the job or
/// trace them.
///
/// Each method states what the job may or may not do, and pinfold chooses the mechanism. If no mechanism of this
/// machine can hold a promise, pinfold starts nothing, and the error names the promise. You can [waive](Self::waive)
/// such a promise.
///
/// docs/sandbox.md says what each promise means, and what is not promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "sandbox"))]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    pub(super) strict: bool,
    pub(super) read: Vec<PathBuf>,
    pub(super) read_if_exists: Vec<PathBuf>,
    pub(super) write: Vec<PathBuf>,
    pub(super) no_system: bool,
    pub(super) deny: Vec<PathBuf>,
    pub(super) network: Network,
    #[serde(deserialize_with = "ports")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<u16>"))]
    pub(super) connect_tcp: Vec<u16>,
    #[serde(deserialize_with = "ports")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<u16>"))]
    pub(super) listen_tcp: Vec<u16>,
    pub(super) unix: Unix,
    pub(super) private_tmp: Option<PrivateTmp>,
    pub(super) seccomp: Option<PathBuf>,
    pub(super) inherit_fd: Vec<RawFd>,
    pub(super) env: Vec<String>,
    pub(super) waive: BTreeSet<Promise>,
    pub(super) explain_denials: bool,
    /// How messages name the parts of the policy.
    #[serde(skip, default = "Spelling::json")]
    pub(super) spelling: Spelling,
}

/// The network of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Network {
    /// No network, except for the TCP ports that [`Sandbox::connect_tcp`] and [`Sandbox::listen_tcp`] name.
    #[default]
    None,
    /// A network namespace with a loopback device of its own and nothing else.
    Own,
    /// The network of the host.
    Host,
}

/// The Unix sockets of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Unix {
    /// No Unix sockets, except for connected pairs (socketpair(2)).
    #[default]
    None,
    /// Sockets that the job itself makes.
    Own,
    /// The same, and the sockets at these paths.
    Paths(Vec<PathBuf>),
}

/// The job's own directory for temporary files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PrivateTmp {
    /// The largest size of all files together, in bytes. This needs a mount namespace.
    pub size: Option<u64>,
}

impl Sandbox {
    /// Returns the policy that grants only the system's programs and libraries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also promises that outside of the paths to [write](Self::write), the job can't change the mode, times, owner or
    /// extended attributes of files. This needs a mount namespace.
    pub fn strict(&mut self) -> &mut Self {
        self.strict = true;
        self
    }

    /// Lets the job read and execute a file, or all files below a directory. The path must exist.
    pub fn read(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.read.push(path.into());
        self
    }

    /// Does the same as [`read`](Self::read) if the path exists.
    pub fn read_if_exists(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.read_if_exists.push(path.into());
        self
    }

    /// Lets the job read, write and execute a file, or do everything below a directory except making devices. The path
    /// must exist.
    pub fn write(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.write.push(path.into());
        self
    }

    /// Does not grant the system's programs and libraries.
    pub fn no_system(&mut self) -> &mut Self {
        self.no_system = true;
        self
    }

    /// Hides a path below a granted one. This needs a mount namespace.
    pub fn deny(&mut self, path: impl Into<PathBuf>) -> &mut Self {
        self.deny.push(path.into());
        self
    }

    /// Sets the network; without this, [`Network::None`].
    pub fn network(&mut self, network: Network) -> &mut Self {
        self.network = network;
        self
    }

    /// Lets the job make TCP connections to this port, on any host.
    pub fn connect_tcp(&mut self, port: u16) -> &mut Self {
        self.connect_tcp.push(port);
        self
    }

    /// Lets the job listen on this TCP port. 0 lets the kernel choose the port.
    pub fn listen_tcp(&mut self, port: u16) -> &mut Self {
        self.listen_tcp.push(port);
        self
    }

    /// Sets the Unix sockets; without this, [`Unix::None`].
    pub fn unix(&mut self, unix: Unix) -> &mut Self {
        self.unix = unix;
        self
    }

    /// Gives the job a directory of its own for temporary files, of at most this size in bytes, and sets `TMPDIR` to
    /// it. It is removed when the job has ended. In a mount namespace, it is `/tmp`, in memory. Without a mount
    /// namespace, it is below `TMPDIR` of this process, or below `/tmp` if the job has another user. A size needs a
    /// mount namespace.
    pub fn private_tmp(&mut self, size: Option<u64>) -> &mut Self {
        self.private_tmp = Some(PrivateTmp { size });
        self
    }

    /// Adds the seccomp filter in this file to pinfold's own filter. The file is a classic BPF program in the format of
    /// `seccomp_export_bpf(3)`. It can forbid more system calls, but can't allow a call that pinfold's filter forbids.
    pub fn seccomp(&mut self, file: impl Into<PathBuf>) -> &mut Self {
        self.seccomp = Some(file.into());
        self
    }

    /// Passes this descriptor on to the job. The job can use it without further checks.
    pub fn inherit_fd(&mut self, number: RawFd) -> &mut Self {
        self.inherit_fd.push(number);
        self
    }

    /// Passes this environment variable on to the job. Without this, the job gets `PATH`, `HOME`, `LANG`, `LC_ALL`,
    /// `TERM`, `TZ` and `USER`, and the variables that the command itself sets.
    pub fn env(&mut self, key: impl Into<String>) -> &mut Self {
        self.env.push(key.into());
        self
    }

    /// Starts the job without this promise if no mechanism of this machine can hold it. The report then says so.
    pub fn waive(&mut self, promise: Promise) -> &mut Self {
        self.waive.insert(promise);
        self
    }

    /// Makes the report list what the sandbox refused to the job, with the options that would grant it
    /// ([`SandboxReport::denials`](crate::report::SandboxReport::denials)). The job can't do more
    /// with this than without it. Each call that the sandbox could refuse takes up to about 0.1 ms longer.
    ///
    /// The kernel notifies a thread of pinfold of these calls (seccomp_unotify(2), Linux 5.5). A process can have only
    /// one such listener. So this does not work if pinfold itself already runs under one, and a program of the job
    /// can't install one.
    pub fn explain_denials(&mut self, explain: bool) -> &mut Self {
        self.explain_denials = explain;
        self
    }

    /// Makes messages name the options of the command.
    #[cfg(feature = "cli")]
    pub(crate) fn name_options(&mut self) {
        self.spelling = Spelling::Options;
    }

    /// Returns whether the job gets this environment variable of the caller.
    pub(crate) fn passes(&self, key: &OsStr) -> bool {
        const ALWAYS: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TERM", "TZ", "USER"];
        ALWAYS.iter().any(|name| key == *name) || self.env.iter().any(|name| key == name.as_str())
    }

    /// Returns the environment variables that the policy passes on.
    pub(crate) fn variables(&self) -> &[String] {
        &self.env
    }

    /// Returns the descriptors that the job gets besides its standard streams.
    pub(crate) fn descriptors(&self) -> BTreeSet<RawFd> {
        self.inherit_fd.iter().copied().filter(|number| *number > 2).collect()
    }

    /// Returns whether the policy has rules about TCP ports.
    pub(super) fn has_ports(&self) -> bool {
        !self.connect_tcp.is_empty() || !self.listen_tcp.is_empty()
    }

    /// Checks the values, as far as this does not depend on the machine.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the value and what is valid.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |what, value: String, advice: &str| Err(Error::invalid(what, value, advice));
        if let Some(port) = self.connect_tcp.iter().find(|port| **port == 0) {
            return bad("TCP port to connect to", port.to_string(), "ports are 1 to 65535");
        }
        if self.has_ports() && self.network != Network::None {
            let network = if self.network == Network::Own { "own" } else { "host" };
            let advice = "with single TCP ports, the network must be 'none': the ports are the exception";
            return bad("network", network.into(), advice);
        }
        if let Some(number) = self.inherit_fd.iter().find(|number| **number < 0) {
            return bad("descriptor to inherit", number.to_string(), "it must be the number of an open descriptor");
        }
        if let Some(key) = self.env.iter().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
            return bad(
                "environment variable of the sandbox",
                key.clone(),
                "give its name only, without '=' and value",
            );
        }
        for (what, path) in self.paths() {
            if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0) {
                return bad(what, path.to_string_lossy().replace('\0', "\\0"), "give the path of a file or directory");
            }
        }
        if self.private_tmp.is_some_and(|tmp| tmp.size == Some(0)) {
            return bad("size of the private tmp", "0".into(), "give the largest size of its files together");
        }
        Ok(())
    }

    /// Returns all paths, each with what it is for.
    fn paths(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let sockets: &[PathBuf] = if let Unix::Paths(paths) = &self.unix { paths } else { &[] };
        let named: [(&'static str, &[PathBuf]); 6] = [
            ("path to read", &self.read),
            ("path to read if it exists", &self.read_if_exists),
            ("path to write", &self.write),
            ("path to deny", &self.deny),
            ("Unix socket", sockets),
            ("seccomp filter", self.seccomp.as_slice()),
        ];
        named.into_iter().flat_map(|(what, paths)| paths.iter().map(move |path| (what, path.as_path())))
    }
}

/// Reads ports, with an error that names a number that is no port.
fn ports<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u16>, D::Error> {
    let numbers = Vec::<i64>::deserialize(deserializer)?;
    let port = |number: i64| {
        u16::try_from(number)
            .map_err(|_| serde::de::Error::custom(format!("{number} is no TCP port: ports are 0 to 65535")))
    };
    numbers.into_iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sandbox: &Sandbox) -> String {
        sandbox.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_policy_is_json() {
        let mut sandbox = Sandbox::new();
        sandbox.strict().read("/srv/data").write("/srv/out").connect_tcp(443).unix(Unix::Own);
        sandbox.private_tmp(Some(1 << 20)).waive(Promise::Processes).env("CI");
        let json = serde_json::to_value(&sandbox).unwrap();
        assert_eq!(json["connect_tcp"], serde_json::json!([443]));
        assert_eq!(json["waive"], serde_json::json!(["processes"]));
        assert_eq!(serde_json::from_value::<Sandbox>(json).unwrap(), sandbox);
        assert_eq!(serde_json::from_str::<Sandbox>("{}").unwrap(), Sandbox::new());
        let paths = serde_json::from_str::<Sandbox>(r#"{"unix": {"paths": ["/run/x"]}, "network": "host"}"#).unwrap();
        assert_eq!(paths.unix, Unix::Paths(vec!["/run/x".into()]));
    }

    #[test]
    fn the_schema_of_serve_has_the_same_keys() {
        let schema: serde_json::Value = serde_json::from_str(include_str!("../../docs/serve.schema.json")).unwrap();
        let keys =
            |value: &serde_json::Value| -> BTreeSet<String> { value.as_object().unwrap().keys().cloned().collect() };
        let policy = serde_json::to_value(Sandbox::new()).unwrap();
        assert_eq!(keys(&schema["$defs"]["sandbox"]["properties"]), keys(&policy));
    }

    #[test]
    fn json_that_is_wrong_is_refused_with_the_reason() {
        for (json, part) in [
            (r#"{"connect_tcp": [70000]}"#, "70000 is no TCP port"),
            (r#"{"listen_tcp": [-1]}"#, "-1 is no TCP port"),
            (r#"{"reed": ["/"]}"#, "unknown field `reed`"),
            (r#"{"waive": ["everything"]}"#, "unknown variant `everything`"),
            (r#"{"network": "internet"}"#, "`none`, `own`, `host`"),
            (r#"{"private_tmp": {"size": "a lot"}}"#, "a lot"),
        ] {
            let error = serde_json::from_str::<Sandbox>(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        assert!(message(Sandbox::new().connect_tcp(0)).contains("1 to 65535"));
        assert!(message(Sandbox::new().network(Network::Host).connect_tcp(80)).contains("'host' is not valid"));
        assert!(message(Sandbox::new().network(Network::Own).listen_tcp(80)).contains("'own' is not valid"));
        assert!(message(Sandbox::new().inherit_fd(-1)).contains("-1"));
        assert!(message(Sandbox::new().env("A=b")).contains("A=b"));
        assert!(message(Sandbox::new().read("")).contains("path to read ''"));
        assert!(message(Sandbox::new().write("a\0b")).contains("path to write"));
        assert!(message(Sandbox::new().private_tmp(Some(0))).contains("largest size"));
        Sandbox::new().listen_tcp(0).connect_tcp(65535).validate().unwrap();
    }

    #[test]
    fn the_environment_is_clean() {
        let mut sandbox = Sandbox::new();
        sandbox.env("CI");
        let passed = ["PATH", "CI", "HOME"].map(|key| sandbox.passes(key.as_ref()));
        let kept_back = ["AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "LD_PRELOAD", "PATHX"];
        assert_eq!((passed, kept_back.map(|key| sandbox.passes(key.as_ref()))), ([true; 3], [false; 4]));
    }
}

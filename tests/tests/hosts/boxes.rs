//! A cluster whose hosts are containers with addresses of their own on a private network: each database
//! host has PostgreSQL and its agent, the coordinator has one for itself. Docker cuts them off, pauses and
//! kills them. Their files are directories of this machine, so tests reach a server by its socket, and read
//! logs, also while its host is cut off.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{self, DATABASE};
use steep_tests::host_image::{HostImage, docker};
use steep_tests::logs::Documented;
use steep_tests::paths::Binaries;
use steep_tests::pg::{self, Account, Database, Installation};
use steep_tests::scratch::Scratch;
use steep_tests::{command, process, usage, wait};
use testcontainers::core::{AccessMode, Mount};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _};
use tokio::runtime::Runtime;

/// Every container and network here has it; its value is the process that made it.
const LABEL: &str = "steep-repl-tests";

const COORDINATOR: &str = "coordinator";

/// A host starts, with the recovery of its PostgreSQL, within this time.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The contract: within this time a job says what it waits for.
const SAID_LIMIT: Duration = Duration::from_secs(15);

/// Both end with the container; the arguments are the agent's. Processes of a host that starts again have the
/// numbers of those before, so PostgreSQL would take another one for its own that still runs.
const DATABASE_HOST: &str = r#"
    rm -f data/postmaster.pid .s.PGSQL.*.lock
    postgres -D data -k "$PWD" >>server.log 2>&1 &
    steep-agent run "$@" >>"agent-$NODE.log" 2>&1 &
    wait
"#;

const COORDINATOR_HOST: &str = r#"exec steep-coordinator run "$@" >>coordinator.log 2>&1"#;

/// How a host comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    /// With the address it had.
    Same,
    /// With another one.
    Other,
}

struct Host {
    name: String,
    container: ContainerAsync<GenericImage>,
}

/// Everything that runs. When dropped, its containers and its network are removed.
pub(crate) struct Boxes {
    hosts: Vec<Host>,
    network: String,
    runtime: Runtime,
    image: HostImage,
    installation: Installation,
    binaries: Binaries,
    scratch: Scratch,
}

impl Boxes {
    /// Starts a coordinator and `nodes`, each on a host of its own.
    pub(crate) fn start(nodes: &[&str]) -> Result<Self> {
        let image = HostImage::installed()?;
        sweep()?;
        let mut boxes = Self {
            hosts: Vec::new(),
            network: network()?,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
            image,
            installation: Installation::preferred()?,
            binaries: Binaries::beside_me()?,
            scratch: Scratch::in_memory()?,
        };
        let names: Vec<String> = nodes.iter().map(|name| (*name).to_owned()).collect();
        cluster::issue_certificates(&boxes.binaries, &boxes.dir("certs"), &names)?;
        boxes.start_coordinator()?;
        for (number, node) in nodes.iter().enumerate() {
            boxes.start_node(number, node)?;
        }
        for node in nodes {
            boxes.wait_online(node)?;
        }
        Ok(boxes)
    }

    fn start_coordinator(&mut self) -> Result<()> {
        let mut arguments = self.certificates(COORDINATOR)?;
        arguments.extend(words(
            "--log-format json --listen 0.0.0.0:7400 --data-dir store",
        ));
        self.start_host(COORDINATOR, COORDINATOR_HOST, arguments, "")
    }

    fn start_node(&mut self, number: usize, node: &str) -> Result<()> {
        let settings = [
            ("listen_addresses", "*"),
            // An end that is gone is noticed after seconds instead of a minute.
            ("wal_receiver_timeout", "5s"),
            ("wal_sender_timeout", "5s"),
        ];
        let mut arguments = self.certificates(node)?;
        let dir = self.dir(node);
        let password = pg::create_data(&self.installation, number, &dir.join("data"), &settings)?;
        let (me, coordinator) = (self.container_name(node), self.container_name(COORDINATOR));
        arguments.extend(words(&format!(
            "--log-format json --node {node} --listen 0.0.0.0:7401 --advertise {me}:7401
             --coordinator {coordinator}:7400 --data-dir agent"
        )));
        let database = format!("port=5432 user=postgres dbname={DATABASE}");
        arguments.extend([
            "--postgres".to_owned(),
            format!("host={} {database}", dir.display()),
            "--replication-conninfo".to_owned(),
            format!("host={me} {database}"),
        ]);
        self.start_host(node, DATABASE_HOST, arguments, &password)?;
        self.wait_database(node)
    }

    /// Creates a host's directory, with its certificate.
    fn certificates(&self, name: &str) -> Result<Vec<String>> {
        let (dir, account) = (self.dir(name), Account::for_servers()?);
        account.create_dir(&dir)?;
        let mut arguments = Vec::new();
        for (option, file, from) in [
            ("--ca", "ca.pem", "ca.pem".to_owned()),
            ("--cert", "me.pem", format!("{name}.pem")),
            ("--key", "me.key", format!("{name}.key")),
        ] {
            std::fs::copy(self.dir("certs").join(from), dir.join(file))?;
            account.give(&dir.join(file))?;
            arguments.extend([option.to_owned(), file.to_owned()]);
        }
        Ok(arguments)
    }

    fn start_host(
        &mut self,
        name: &str,
        script: &str,
        arguments: Vec<String>,
        password: &str,
    ) -> Result<()> {
        let (dir, postgres) = (self.dir(name), self.installation.bin());
        // A Python package has its libraries beside the module with the programs.
        let above = if postgres.ends_with("pginstall/bin") {
            3
        } else {
            1
        };
        let home = postgres.ancestors().nth(above).context("a directory")?;
        let command = ["sh", "-c", script, "host"].map(str::to_owned);
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            self.binaries.dir().display(),
            postgres.display()
        );
        let request = GenericImage::new(self.image.name(), self.image.tag())
            .with_container_name(self.container_name(name))
            .with_network(&self.network)
            .with_label(LABEL, std::process::id().to_string())
            .with_user(account())
            .with_mount(mount(&dir, AccessMode::ReadWrite))
            .with_mount(mount(self.binaries.dir(), AccessMode::ReadOnly))
            .with_mount(mount(home, AccessMode::ReadOnly))
            .with_working_dir(dir.display().to_string())
            .with_env_var("PATH", path)
            .with_env_var("HOME", dir.display().to_string())
            .with_env_var("NODE", name)
            .with_env_var("PGPASSWORD", password)
            .with_cmd(command.into_iter().chain(arguments));
        let container = self
            .runtime
            .block_on(request.start())
            .with_context(|| format!("cannot start the host {name}"))?;
        self.hosts.push(Host {
            name: name.to_owned(),
            container,
        });
        Ok(())
    }

    /// A host's directory.
    fn dir(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The name of its container, by which Docker's DNS knows it.
    fn container_name(&self, name: &str) -> String {
        format!("{}-{}", self.network, name.replace('_', "-"))
    }

    fn host(&self, name: &str) -> &Host {
        let mut hosts = self.hosts.iter();
        hosts
            .find(|host| host.name == name)
            .expect("no host of that name")
    }

    /// A node's replicated database.
    pub(crate) fn database(&self, node: &str) -> Database {
        Database::at(&self.installation, self.dir(node), 5432, DATABASE)
    }

    /// Its address on the network.
    fn address(&self, name: &str) -> Result<String> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        docker(&[
            "inspect",
            "--format",
            format,
            self.host(name).container.id(),
        ])
    }

    /// Cuts a host off for `away`. What happens meanwhile is for `meanwhile` to say.
    pub(crate) fn cut_off(
        &self,
        name: &str,
        back: Address,
        meanwhile: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (id, address) = (self.host(name).container.id(), self.address(name)?);
        docker(&["network", "disconnect", &self.network, id])?;
        meanwhile()?;
        let address = match back {
            Address::Same => address,
            Address::Other => other(&address)?,
        };
        docker(&["network", "connect", "--ip", &address, &self.network, id]).map(drop)
    }

    /// Pauses everything on a host. On a busy machine the kernel sometimes needs more time to stop all processes
    /// than the container's runtime gives it.
    pub(crate) fn paused(&self, name: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let container = &self.host(name).container;
        let mut last = None;
        wait::until_true("a host to be paused", START_LIMIT, || {
            last = self.runtime.block_on(container.pause()).err();
            Ok(last.is_none())
        })
        .with_context(|| format!("{last:?}"))?;
        let outcome = meanwhile();
        self.runtime.block_on(container.unpause())?;
        outcome
    }

    /// Ends everything on a host at once, like a loss of power.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        docker(&["kill", "--signal", "KILL", self.host(name).container.id()])?;
        wait::until_true("a host to be off", START_LIMIT, || {
            let running = self
                .runtime
                .block_on(self.host(name).container.is_running())?;
            Ok(!running)
        })
    }

    /// Starts a host that was killed.
    pub(crate) fn start_again(&self, name: &str) -> Result<()> {
        self.runtime.block_on(self.host(name).container.start())?;
        if name == COORDINATOR {
            return Ok(());
        }
        self.wait_database(name)
    }

    fn wait_database(&self, node: &str) -> Result<()> {
        let (database, mut last) = (self.database(node), None);
        let what = format!("PostgreSQL on the host {node}");
        wait::until_true(&what, START_LIMIT, || match database.sql("SELECT") {
            Ok(_) => Ok(true),
            Err(error) => {
                last = Some(error);
                Ok(false)
            }
        })
        .with_context(|| {
            let log = process::tail(&self.dir(node).join("server.log"), 20);
            format!("{last:?}\n{log}")
        })
    }

    /// Runs the CLI of this machine to the end.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut cli = Command::new(self.binaries.cli());
        cli.args(arguments)
            .env(
                "STEEP_REPL_COORDINATOR",
                format!("{}:7400", self.address(COORDINATOR)?),
            )
            .env("STEEP_REPL_CERTS", self.dir("certs"))
            .env("HOME", self.dir("certs"))
            .env_remove("STEEP_REPL_PARALLEL");
        command::output(&mut cli)
    }

    /// A node's entry in `nodes --json`; nothing while the coordinator does not answer.
    pub(crate) fn view(&self, node: &str) -> Result<Value> {
        let Ok(printed) = self.cli(&["nodes", "--json"]) else {
            return Ok(Value::Null);
        };
        let all: Value = serde_json::from_str(&printed)?;
        let mut nodes = all["nodes"].as_array().into_iter().flatten();
        let found = nodes.find(|view| view["node_id"] == node);
        Ok(found.cloned().unwrap_or_default())
    }

    fn wait_online(&self, node: &str) -> Result<()> {
        let what = format!("the coordinator to see {node}");
        wait::until_true(&what, START_LIMIT, || {
            Ok(self.view(node)?["agent_online"] == true)
        })
        .with_context(|| {
            let log = self.dir(node).join(format!("agent-{node}.log"));
            let theirs = process::tail(&self.dir(COORDINATOR).join("coordinator.log"), 10);
            format!("{}\n{theirs}", process::tail(&log, 20))
        })
    }

    /// Waits until `status` of `target` says that it waits for `node`.
    pub(crate) fn waits_for(&self, target: &str, node: &str) -> Result<()> {
        let what = format!("{target} to say that it waits for {node}");
        wait::until_true(&what, SAID_LIMIT, || {
            let status = self.cli(&["status", target, "--json"])?;
            let status: Value = serde_json::from_str(&status)?;
            Ok(status["waiting"]["node_id"] == node)
        })
        .with_context(|| format!("{:?}", self.cli(&["status", target, "--json"])))
    }

    /// Waits until a node is in one of these states.
    pub(crate) fn wait_state(
        &self,
        node: &str,
        states: &[&str],
        limit: Duration,
    ) -> Result<String> {
        let what = format!("{node} to be {}", states.join(" or "));
        wait::until(&what, limit, || {
            let view = self.view(node)?;
            let state = view["state"].as_str().unwrap_or_default();
            Ok(states.contains(&state).then(|| state.to_owned()))
        })
        .with_context(|| format!("{:?}", self.view(node)))
    }

    /// Checks every log, as each suite does.
    pub(crate) fn check_logs(&self) -> Result<()> {
        let documented = Documented::read()?;
        let mut hosts = self.hosts.iter();
        hosts.try_for_each(|host| documented.check_all(&self.dir(&host.name)))
    }
}

impl Drop for Boxes {
    fn drop(&mut self) {
        for host in &self.hosts {
            for log in [
                "server.log",
                "coordinator.log",
                &format!("agent-{}.log", host.name),
            ] {
                let log = self.dir(&host.name).join(log);
                // The output of a test is shown only if it fails.
                eprintln!("--- {}\n{}", log.display(), process::tail(&log, 30));
            }
        }
        // Containers are removed where their runtime is.
        let _runtime = self.runtime.enter();
        self.hosts.clear();
        if let Err(error) = docker(&["network", "rm", &self.network]) {
            eprintln!("{error:#}");
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(str::to_owned)
}

/// The same path inside and outside.
fn mount(dir: &Path, access: AccessMode) -> Mount {
    let path = dir.display().to_string();
    Mount::bind_mount(path.clone(), path).with_access_mode(access)
}

/// The account of servers, for the whole host.
fn account() -> String {
    let (uid, gid) = match Account::for_servers() {
        Ok(Account::Unprivileged { uid, gid }) => (uid, gid),
        _ => (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        ),
    };
    format!("{uid}:{gid}")
}

/// An address of the same network that Docker, which counts from its beginning, has not given out.
fn other(address: &str) -> Result<String> {
    let (network, host) = address.rsplit_once('.').context("an IPv4 address")?;
    let host: u8 = host.parse()?;
    ensure!(host < 100, "{address} is not at the network's beginning");
    Ok(format!("{network}.{}", host + 100))
}

/// Creates a network. Addresses can be chosen only in one whose range was, so it gets the range that Docker
/// has found to be free.
fn network() -> Result<String> {
    let name = format!("steep-repl-{}", std::process::id());
    let label = format!("{LABEL}={}", std::process::id());
    let create = ["network", "create", "--label", &label];
    let range = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
    wait::until("a network", START_LIMIT, || {
        docker(&[&create[..], &[&name]].concat())?;
        let subnet = docker(&["network", "inspect", "--format", range, &name])?;
        docker(&["network", "rm", &name])?;
        // Another test may have been given the same range meanwhile.
        let made = docker(&[&create[..], &["--subnet", &subnet, &name]].concat());
        Ok(made.is_ok().then_some(()))
    })?;
    Ok(name)
}

/// Removes what killed runs have left.
fn sweep() -> Result<()> {
    let filter = format!("label={LABEL}");
    let format = format!("{{{{.ID}}}} {{{{.Label \"{LABEL}\"}}}}");
    for (list, remove) in [
        (&["ps", "--all"][..], &["rm", "--force", "--volumes"][..]),
        (&["network", "ls"], &["network", "rm"]),
    ] {
        let filters = ["--filter", &filter, "--format", &format];
        for line in docker(&[list, &filters[..]].concat())?.lines() {
            let (id, owner) = line.split_once(' ').context("an id and a label")?;
            if !usage::is_alive(owner.parse()?) {
                // Another test may have removed it just now.
                drop(docker(&[remove, &[id]].concat()));
            }
        }
    }
    Ok(())
}

//! A scripted coordinator over real QUIC with real certificates.

use std::net::UdpSocket;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_certs::{Credentials, Role, init_ca, issue};
use steep_protocol::close::CloseCode;
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::quic::{Connection, Endpoint, Tuning};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// One step of the script for a stream.
pub(crate) enum Step {
    /// Send this reply.
    Say(ApiReply),
    /// Send nothing more and keep the stream open.
    Hold,
    /// Close the connection like a coordinator that stops.
    Leave,
}

/// Whether it answers new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hearing {
    /// At once.
    Good,
    /// Not until it is set back to good.
    None,
}

/// The longest that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

type Script = dyn FnMut(&ApiRequest) -> Vec<Step> + Send;

/// A scripted coordinator that runs until dropped.
pub(crate) struct Coordinator {
    pub(crate) address: String,
    pub(crate) certs: TempDir,
    requests: Arc<Mutex<Vec<ApiRequest>>>,
    stop: CancellationToken,
    hearing: watch::Sender<Hearing>,
    knocks: mpsc::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Coordinator {
    /// Starts one that answers each request with the script's steps.
    pub(crate) fn start(script: impl FnMut(&ApiRequest) -> Vec<Step> + Send + 'static) -> Self {
        let certs = tempfile::tempdir().unwrap();
        init_ca(certs.path()).unwrap();
        issue(certs.path(), Role::Operator, "operator", &[], None).unwrap();
        let files = issue(certs.path(), Role::Coordinator, "main", &[], None).unwrap();
        let credentials = Credentials::load(&files.ca, &files.certificate, &files.key).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (ready, address) = mpsc::sync_channel(1);
        let (hearing, heard) = watch::channel(Hearing::Good);
        let (knock, knocks) = mpsc::channel();
        let serving = Serving {
            script: Arc::new(Mutex::new(script)),
            requests: Arc::clone(&requests),
            stop: stop.clone(),
            hearing: heard,
            knock,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async move {
                let any = "127.0.0.1:0".parse().unwrap();
                let endpoint = Endpoint::listen(any, &credentials, Tuning::CONTROL).unwrap();
                ready.send(endpoint.local_addr().to_string()).unwrap();
                serving.serve(&endpoint).await;
                endpoint
                    .close(CloseCode::ShuttingDown, Duration::from_millis(100))
                    .await;
            });
        });
        let address = address.recv().unwrap();
        Self {
            address,
            certs,
            requests,
            stop,
            hearing,
            knocks,
            thread: Some(thread),
        }
    }

    pub(crate) fn requests(&self) -> Vec<ApiRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Sets whether new connections are answered.
    pub(crate) fn hear(&self, hearing: Hearing) {
        self.hearing.send_replace(hearing);
    }

    /// Waits until somebody has dialled since the last call.
    pub(crate) fn wait_for_a_knock(&self) {
        self.knocks.recv_timeout(PATIENCE).unwrap();
    }

    /// The command line for this coordinator, with those words.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = bare(line);
        command
            .env("STEEP_REPL_COORDINATOR", &self.address)
            .env("STEEP_REPL_CERTS", self.certs.path());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        Ran::of(self.command(line).output().unwrap())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The command line without the machine's settings.
pub(crate) fn bare(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steep-repl"));
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .args(line.split_whitespace());
    command.stdin(std::process::Stdio::null());
    command
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Its output as JSON objects, one a line.
    pub(crate) fn objects(&self) -> Vec<serde_json::Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[derive(Clone)]
struct Serving {
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<ApiRequest>>>,
    stop: CancellationToken,
    hearing: watch::Receiver<Hearing>,
    knock: mpsc::Sender<()>,
}

impl Serving {
    async fn serve(&self, endpoint: &Endpoint) {
        let mut tasks = JoinSet::new();
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = self.stop.cancelled() => return,
            };
            let Some(incoming) = incoming else { return };
            let mut serving = self.clone();
            tasks.spawn(async move {
                // The test may be over.
                let _ = serving.knock.send(());
                let heard = serving
                    .hearing
                    .wait_for(|hearing| *hearing == Hearing::Good);
                if heard.await.is_err() {
                    return;
                }
                if let Ok(connection) = incoming.handshake().await {
                    assert_eq!(connection.peer().role, Role::Operator);
                    serving.connection(&connection).await;
                }
            });
        }
    }

    async fn connection(&self, connection: &Connection) {
        let mut tasks = JoinSet::new();
        while let Ok((mut sender, mut receiver)) = connection.accept().await {
            let serving = self.clone();
            let connection = connection.clone();
            tasks.spawn(async move {
                let Ok(Some(request)) = receiver.recv::<ApiRequest>().await else {
                    return;
                };
                let steps = (serving.script.lock().unwrap())(&request);
                serving.requests.lock().unwrap().push(request);
                for step in steps {
                    match step {
                        Step::Say(reply) => {
                            if sender.send(&reply).await.is_err() {
                                return;
                            }
                        }
                        Step::Hold => serving.stop.cancelled().await,
                        Step::Leave => {
                            // Waits until the reply has arrived: closing drops data in flight.
                            sender.finish();
                            let _ = sender.drained().await;
                            connection.close(CloseCode::ShuttingDown);
                        }
                    }
                }
                sender.finish();
                // Waits until the other end has read everything.
                let _ = sender.drained().await;
            });
        }
    }
}

/// Forwards datagrams between one client and a coordinator until it falls silent, like a machine
/// that is gone.
pub(crate) struct Relay {
    pub(crate) address: String,
    silent: Arc<AtomicBool>,
}

impl Relay {
    pub(crate) fn start(coordinator: &str) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(coordinator).unwrap();
        let address = front.local_addr().unwrap().to_string();
        let silent = Arc::new(AtomicBool::new(false));
        let client = Arc::new(Mutex::new(None));
        let (from_client, to_client) = (front.try_clone().unwrap(), front);
        let (to_coordinator, from_coordinator) = (back.try_clone().unwrap(), back);
        let (known, muted) = (Arc::clone(&client), Arc::clone(&silent));
        std::thread::spawn(move || {
            let mut bytes = [0; 65_535];
            while let Ok((length, peer)) = from_client.recv_from(&mut bytes) {
                *known.lock().unwrap() = Some(peer);
                if !muted.load(Ordering::Relaxed) {
                    let _ = to_coordinator.send(&bytes[..length]);
                }
            }
        });
        let muted = Arc::clone(&silent);
        std::thread::spawn(move || {
            let mut bytes = [0; 65_535];
            while let Ok(length) = from_coordinator.recv(&mut bytes) {
                let peer = *client.lock().unwrap();
                if let (Some(peer), false) = (peer, muted.load(Ordering::Relaxed)) {
                    let _ = to_client.send_to(&bytes[..length], peer);
                }
            }
        });
        Self { address, silent }
    }

    /// From now on nothing is forwarded.
    pub(crate) fn fall_silent(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

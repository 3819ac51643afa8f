//! A bucket of a real S3 server, with a proxy in front that makes requests fail ([`proxy`]).
//!
//! The server is moto ([`package`]), which checks signatures and permissions: its only user may do what
//! docs/snapshots.md lists, and nothing else.

mod http;
mod package;
mod proxy;

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::http::Message;
pub use self::package::S3Server;
pub use self::proxy::{Fault, Proxy, Rule, Seen};
use crate::pg::Grouping;
use crate::ports::Port;
use crate::process::Process;
use crate::required::or_not_tested;
use crate::scratch::Scratch;
use crate::wait;

const PAGE: &str = include_str!("../../../docs/snapshots.md");

const NAME: &str = "steep-tests";

const REGION: &str = "eu-central-1";

/// Python starts slowly on a machine that is busy.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// An empty bucket. Server and proxy end with it.
#[derive(Debug)]
pub struct Bucket {
    proxy: Proxy,
    port: Port,
    key: Key,
    _server: Process,
    _scratch: Scratch,
}

#[derive(Debug, Clone)]
struct Key {
    id: String,
    secret: String,
}

impl Bucket {
    /// Starts a server with a bucket; `None`, and says so, where there is no server: on CI, that is an error.
    ///
    /// # Errors
    /// It does not start, or cannot be installed on CI.
    pub fn start() -> Result<Option<Self>> {
        let lacking = "there is no S3 server on this machine";
        let server = or_not_tested(S3Server::installed(), lacking)?;
        server.as_ref().map(Self::of).transpose()
    }

    fn of(server: &S3Server) -> Result<Self> {
        let (scratch, port) = (Scratch::new()?, Port::take()?);
        let mut command = server.command(port.number());
        command.current_dir(scratch.path());
        let log = scratch.path().join("s3.log");
        let process = Process::spawn("the S3 server", &mut command, &log, Grouping::Shared)?;
        wait::until_true("the S3 server to listen", READY_LIMIT, || {
            Ok(TcpStream::connect(port.address()).is_ok())
        })
        .with_context(|| crate::process::tail(&log, 20))?;
        let address = port.address();
        let location = format!(
            "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint>\
             </CreateBucketConfiguration>"
        );
        let target = format!("/{NAME}");
        ask(
            &address,
            &Message::request("PUT", &target, location.as_bytes()),
        )?;
        let key = user(&address)?;
        let bucket = Self {
            proxy: Proxy::start(address)?,
            port,
            key,
            _server: process,
            _scratch: scratch,
        };
        bucket.check_requests(true)?;
        Ok(bucket)
    }

    /// A place in it.
    #[must_use]
    pub fn place(&self, prefix: &str) -> String {
        format!("s3://{NAME}/{prefix}")
    }

    /// What a process needs to use it.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", self.key.id.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.key.secret.clone()),
            ("AWS_REGION", REGION.to_owned()),
            (
                "AWS_ENDPOINT_URL",
                format!("http://{}", self.proxy.address()),
            ),
            ("AWS_ALLOW_HTTP", "1".to_owned()),
        ]
    }

    /// Its user's secret.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.key.secret
    }

    /// The proxy that [`Bucket::environment`] leads to.
    #[must_use]
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The keys of all objects.
    ///
    /// # Errors
    /// The server's error.
    pub fn objects(&self) -> Result<Vec<String>> {
        let listed = self.directly("GET", "?list-type=2", &[])?;
        Ok(elements(&listed, "Key"))
    }

    /// The keys of all unfinished uploads.
    ///
    /// # Errors
    /// The server's error.
    pub fn uploads(&self) -> Result<Vec<String>> {
        let listed = self.directly("GET", "?uploads", &[])?;
        Ok(elements(&listed, "Key"))
    }

    /// An object's content.
    ///
    /// # Errors
    /// The server's error.
    pub fn read(&self, key: &str) -> Result<Vec<u8>> {
        self.directly("GET", &format!("/{key}"), &[])
    }

    /// Puts an object, also in another's place.
    ///
    /// # Errors
    /// The server's error.
    pub fn write(&self, key: &str, content: &[u8]) -> Result<()> {
        self.directly("PUT", &format!("/{key}"), content).map(drop)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// The server's error.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.directly("DELETE", &format!("/{key}"), &[]).map(drop)
    }

    /// Asks the server itself, without credentials.
    fn directly(&self, method: &str, rest: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.check_requests(false)?;
        let mut request = Message::request(method, &format!("/{NAME}{rest}"), body);
        request.headers.push(signed_by_nobody("s3"));
        let answer = ask(&self.port.address(), &request);
        self.check_requests(true)?;
        answer.map(|answer| answer.body)
    }

    /// Whether the server checks signatures and permissions. While a test looks at its bucket itself, it
    /// does not.
    fn check_requests(&self, is_checked: bool) -> Result<()> {
        let unchecked: &[u8] = if is_checked { b"0" } else { b"inf" };
        let request = Message::request("POST", "/moto-api/reset-auth", unchecked);
        ask(&self.port.address(), &request).map(drop)
    }
}

/// Sends a request that must succeed.
fn ask(address: &str, request: &Message) -> Result<Message> {
    let answer = http::exchange(address, request)?;
    ensure!(
        answer.word(1).starts_with('2'),
        "{} to {}: {}",
        answer.first,
        request.first,
        String::from_utf8_lossy(&answer.body)
    );
    Ok(answer)
}

/// What the server tells its services apart by, while it does not check it.
fn signed_by_nobody(service: &str) -> String {
    format!(
        "Authorization: AWS4-HMAC-SHA256 Credential=none/20260101/{REGION}/{service}/aws4_request, \
         SignedHeaders=host, Signature=none"
    )
}

/// Creates the user with the permissions that the documentation lists.
fn user(address: &str) -> Result<Key> {
    let iam = |parameters: &str| -> Result<Message> {
        let body = format!("Version=2010-05-08&UserName=steep&{parameters}");
        let mut request = Message::request("POST", "/", body.as_bytes());
        request.headers.extend([
            "Content-Type: application/x-www-form-urlencoded".to_owned(),
            signed_by_nobody("iam"),
        ]);
        ask(address, &request)
    };
    iam("Action=CreateUser")?;
    let policy = documented_policy()?;
    iam(&format!(
        "Action=PutUserPolicy&PolicyName=steep&PolicyDocument={}",
        encoded(&policy)
    ))?;
    let made = iam("Action=CreateAccessKey")?.body;
    let one = |element: &str| elements(&made, element).pop().context("a key");
    Ok(Key {
        id: one("AccessKeyId")?,
        secret: one("SecretAccessKey")?,
    })
}

/// The policy in docs/snapshots.md, for this bucket.
fn documented_policy() -> Result<String> {
    let (_, rest) = PAGE.split_once("```json\n").context("a policy")?;
    let (policy, _) = rest.split_once("```").context("its end")?;
    ensure!(policy.contains("BUCKET"), "{policy}");
    // The server asks for the permission to delete several objects at once on the bucket, S3 on each of them.
    let policy = policy.replace("BUCKET/PREFIX/*", &format!("{NAME}*"));
    Ok(policy.replace("BUCKET", NAME))
}

/// As in a form.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// The contents of every element of that name.
fn elements(answer: &[u8], name: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    text.split(&begin)
        .skip(1)
        .filter_map(|rest| rest.split_once(&end))
        .map(|(content, _)| content.to_owned())
        .collect()
}

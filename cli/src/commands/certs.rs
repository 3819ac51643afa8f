//! `steep-repl certs`. The only commands that need no coordinator.

use jiff::Timestamp;
use serde_json::json;
use steep_certs::{AuthorityError, IssuedFiles, LeafRequest, Role, Validity};
use steep_certs::{Identity, init_ca, issue_with, show};
use steep_protocol::FaultKind;

use super::Context;
use crate::args::{CertsCommand, IssueArgs};
use crate::failure::{self, Failure};
use crate::render::{self, certificate};
use crate::terminal::{print, print_json};

pub(super) fn run(command: CertsCommand, context: &Context) -> Result<u8, Failure> {
    match command {
        CertsCommand::Init { dir } => {
            let files = init_ca(&dir).map_err(|error| refused(&error))?;
            let next = format!(
                "Keep {} to yourself: who has it can join the cluster.\n\
                 next: steep-repl certs issue --dir {} --role agent --name NODE\n",
                files.key.display(),
                dir.display()
            );
            say(&files, None, &next, context);
        }
        CertsCommand::Issue(args) => issue(&args, context)?,
        CertsCommand::Show { file } => {
            let info =
                show(&file).map_err(|error| Failure::new(FaultKind::Failed, error.to_string()))?;
            let now = Timestamp::now();
            if context.terminal.json {
                print_json(&render::json::certificate(&info, now));
            } else {
                print(&certificate::certificate(&info, now, context.terminal.out));
            }
        }
    }
    Ok(failure::SUCCESS)
}

fn issue(args: &IssueArgs, context: &Context) -> Result<(), Failure> {
    let identity = Identity::new(args.role, &args.name)
        .map_err(|error| Failure::bad_request(error.to_string()))?;
    let next = match args.role {
        Role::Operator if args.name != "operator" => format!(
            "next: give --ca, --cert {0}.pem and --key {0}.key, or name it operator and set STEEP_REPL_CERTS\n",
            args.name
        ),
        Role::Operator => "next: set STEEP_REPL_CERTS to the directory\n".to_owned(),
        Role::Agent | Role::Coordinator => {
            format!(
                "next: take these three files to the machine of {}\n",
                args.name
            )
        }
    };
    let request = LeafRequest {
        identity: identity.clone(),
        sans: args.sans.clone(),
        validity: Some(Validity::days_from_now(i64::from(args.days))),
    };
    let files =
        issue_with(&args.dir, &request, args.out.as_deref()).map_err(|error| refused(&error))?;
    say(&files, Some(&identity), &next, context);
    Ok(())
}

fn say(files: &IssuedFiles, identity: Option<&Identity>, next: &str, context: &Context) {
    if context.terminal.json {
        print_json(&json!({
            "role": identity.map(|identity| identity.role.as_str()),
            "name": identity.map(|identity| &identity.name),
            "ca": files.ca.display().to_string(),
            "certificate": files.certificate.display().to_string(),
            "key": files.key.display().to_string(),
        }));
        return;
    }
    let mut text = format!("wrote {}\n", files.certificate.display());
    text.push_str(&format!(
        "wrote {} (only you can read it)\n",
        files.key.display()
    ));
    text.push_str(next);
    print(&text);
}

/// Exit code 2 for bad arguments, 1 for other errors.
fn refused(error: &AuthorityError) -> Failure {
    let kind = match error {
        AuthorityError::Identity(_)
        | AuthorityError::Reserved(_)
        | AuthorityError::San(_)
        | AuthorityError::OwnDomain(_)
        | AuthorityError::TooMany(_) => FaultKind::BadRequest,
        AuthorityError::File(_)
        | AuthorityError::NoAuthority(_)
        | AuthorityError::NotAnAuthority(_)
        | AuthorityError::WrongKey(_)
        | AuthorityError::Expired(_)
        | AuthorityError::OtherAuthority(_)
        | AuthorityError::Generate(_) => FaultKind::Failed,
    };
    Failure::new(kind, error.to_string())
}

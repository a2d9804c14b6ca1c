//! The three bundle-release keys, each in a token of its own.
//!
//! SoftHSM stands in for three HSMs here and only here: signing goes through [`pkcs11`], which knows
//! no vendor. SoftHSM reads where its tokens are from `SOFTHSM2_CONF` when it is loaded.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use evidence::bundle::Quorum;
use evidence::format::{POLICY_SCHEMA, Policy, ReleaseKey};
use pkcs11::{Module, Uri};

use super::{folder, random_uuid, write_private};

const KEYS: usize = 3;
const THRESHOLD: u32 = 2;
const CONF: &str = "softhsm2.conf";
const CONF_VARIABLE: &str = "SOFTHSM2_CONF";

/// Continues only in a process whose SoftHSM, if it loads one, uses the key set in `dir`.
pub(super) fn in_token_store(dir: &Path) -> anyhow::Result<()> {
    in_conf(&dir.join("release").join(CONF))
}

/// As [`in_token_store`] if `uri` names a key of a development key set, that is one whose PIN lies beside
/// a token store in a folder that is marked so. Any other URI changes nothing.
pub(crate) fn with_token_store(uri: &Uri) -> anyhow::Result<()> {
    let Some(release) = uri.pin_source.as_deref().and_then(Path::parent) else { return Ok(()) };
    let (conf, profile) = (release.join(CONF), release.with_file_name("profile"));
    let development = fs::read_to_string(profile).is_ok_and(|text| text == "development\n");
    if development && conf.is_file() { in_conf(&conf) } else { Ok(()) }
}

/// Replaces this process by one with the variable set: the environment of a running process cannot be
/// changed safely, and a module reads it in C.
fn in_conf(conf: &Path) -> anyhow::Result<()> {
    if std::env::var_os(CONF_VARIABLE).is_some_and(|value| value == conf.as_os_str()) {
        return Ok(());
    }
    let this = std::env::current_exe().context("find this program")?;
    let error =
        Command::new(this).args(std::env::args_os().skip(1)).env(CONF_VARIABLE, conf).exec();
    Err(error).context("start this program again with the token store of the key set")
}

/// Makes the token store in `dir` and the keys in it; the policy names them.
pub(super) fn make(dir: &Path, module: &Path) -> anyhow::Result<Policy> {
    folder(dir)?;
    let tokens = dir.join("tokens");
    folder(&tokens)?;
    let conf = format!(
        "# Its path is absolute: a moved key set needs a new one here and in the .uri files.\n\
         directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(dir.join(CONF), conf).context(CONF)?;
    let pin = dir.join("pin");
    write_private(&pin, &format!("{}\n", random_uuid()?.replace('-', "")))?;

    let loaded = Module::load(module)?;
    let mut policy =
        Policy { schema: POLICY_SCHEMA.to_owned(), threshold: THRESHOLD, keys: Vec::new() };
    for number in 1..=KEYS {
        let name = format!("release-{number}");
        let uri = Uri {
            token: Some(format!("casemate {name}")),
            object: Some(name.clone()),
            module_path: Some(module.to_owned()),
            pin_source: Some(pin.clone()),
            ..Uri::default()
        };
        loaded.initialise_token(&uri)?;
        let uri = loaded.generate_p256(&uri)?;
        let pem = loaded.signer(&uri)?.public_key_pem().to_owned();
        fs::write(dir.join(format!("{name}.pub.pem")), &pem).context("public key")?;
        fs::write(dir.join(format!("{name}.uri")), format!("{uri}\n")).context("URI")?;
        policy.keys.push(ReleaseKey { name, pem });
    }
    Quorum::parse(&policy)?;
    Ok(policy)
}

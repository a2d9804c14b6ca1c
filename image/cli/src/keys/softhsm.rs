//! The developer's HSM: a SoftHSM token store inside the key set, one token for each key.
//!
//! SoftHSM stands in for HSMs here and only here: signing goes through [`pkcs11`], which knows no vendor. SoftHSM reads
//! where its tokens are from `SOFTHSM2_CONF` when it is loaded.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use builder::{DEVELOPER_TOKEN, Profile};
use pkcs11::{Module, Uri};

use super::{folder, random_uuid, write_private};

/// Debian's package libsofthsm2.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// Folder of the store in a key set.
const STORE: &str = "hsm";
const CONF: &str = "softhsm2.conf";
const CONF_VARIABLE: &str = "SOFTHSM2_CONF";
const PIN: &str = "pin";

/// A developer's token store.
#[derive(Debug)]
pub(super) struct Store {
    module: PathBuf,
    pin: PathBuf,
    loaded: Module,
}

impl Store {
    /// Makes the store of a new key set; the process is one of [`in_token_store`].
    pub(super) fn make(dir: &Path, module: Option<&Path>) -> anyhow::Result<Self> {
        let store = dir.join(STORE);
        let tokens = store.join("tokens");
        folder(&tokens)?;
        let conf = format!(
            "# Its path is absolute: a moved key set needs a new one here and in the .uri files.\n\
             directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        fs::write(store.join(CONF), conf).context(CONF)?;
        write_private(&store.join(PIN), &format!("{}\n", random_uuid()?.replace('-', "")))?;
        Self::open(dir, module)
    }

    /// The store of a key set; the process is one of [`in_token_store`].
    pub(super) fn open(dir: &Path, module: Option<&Path>) -> anyhow::Result<Self> {
        let module = module.unwrap_or(Path::new(MODULE)).to_owned();
        let loaded = Module::load(&module)?;
        Ok(Self { module, pin: dir.join(STORE).join(PIN), loaded })
    }

    /// A new token, marked as a developer's, for the key `name`; the URI of that key.
    pub(super) fn token(&self, name: &str) -> anyhow::Result<Uri> {
        let uri = Uri {
            token: Some(format!("{DEVELOPER_TOKEN}{name}")),
            object: Some(name.to_owned()),
            module_path: Some(self.module.clone()),
            pin_source: Some(self.pin.clone()),
            ..Uri::default()
        };
        self.loaded.initialise_token(&uri)?;
        Ok(uri)
    }
}

/// Continues only in a process whose SoftHSM, if it loads one, uses the key set in `dir`.
pub(super) fn in_token_store(dir: &Path) -> anyhow::Result<()> {
    in_conf(&dir.join(STORE).join(CONF))
}

/// As [`in_token_store`] if `uri` names a key of a development key set, that is one whose PIN lies beside
/// a token store in a folder that is marked so. Any other URI changes nothing.
pub(crate) fn with_token_store(uri: &Uri) -> anyhow::Result<()> {
    let Some(store) = uri.pin_source.as_deref().and_then(Path::parent) else { return Ok(()) };
    let (conf, profile) = (store.join(CONF), store.with_file_name("profile"));
    let development = fs::read_to_string(profile)
        .is_ok_and(|text| text.trim().parse() == Ok(Profile::Development));
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

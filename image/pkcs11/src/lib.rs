//! The only code that loads a PKCS#11 module.

//! The only code that opens a TPM.

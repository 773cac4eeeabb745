//! Numbers in network byte order at checked offsets.
use crate::Reason;

pub(crate) fn u8_at(bytes: &[u8], at: usize) -> Result<u8, Reason> {
    bytes.get(at).copied().ok_or(Reason::Truncated)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Reason> {
    array_at(bytes, at).map(u16::from_be_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Reason> {
    array_at(bytes, at).map(u32::from_be_bytes)
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Reason> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(Reason::Truncated)
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<(), Reason> {
    bytes.get_mut(at..at + value.len()).ok_or(Reason::Truncated)?.copy_from_slice(value);
    Ok(())
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) -> Result<(), Reason> {
    put(bytes, at, &value.to_be_bytes())
}

pub(crate) fn tail(bytes: &[u8], at: usize) -> Result<&[u8], Reason> {
    bytes.get(at..).ok_or(Reason::Truncated)
}

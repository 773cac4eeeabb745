//! ICMP errors with extensions behind the quoted packet (RFC 4884), whose length field counts other units in each family.
//!
//! Extensions pass as they are (RFC 7915 4.2, 5.2): addresses inside are those of the side where they were written.

/// The shortest quotation before extensions (RFC 4884 3).
const LEAST_QUOTED: usize = 128;
/// The shortest extension structure: its header.
const LEAST_EXTENSIONS: usize = 4;
/// Version, in the first 4 bits of an extension structure.
const VERSION: u8 = 2;

/// Parts what follows an ICMP error's 8 bytes: the quoted packet, which may be padded, and the extensions. `length` is
/// what the error's length field says, in bytes; 0 for none.
pub(super) fn split(body: &[u8], length: usize) -> (&[u8], Option<&[u8]>) {
    if length == 0 {
        return (body, None);
    }
    let Some((quoted, rest)) = body.split_at_checked(length) else { return (body, None) };
    let known = rest.len() >= LEAST_EXTENSIONS && rest.first().is_some_and(|first| first >> 4 == VERSION);
    (quoted, known.then_some(rest))
}

/// Puts a quoted packet and extensions into at most `room` bytes; says what the length field is, in units of `unit`
/// bytes (4 or 8). What has no room is cut: the quoted packet down to 128 bytes first, then the extensions as a whole.
pub(super) fn join(quoted: &[u8], extensions: Option<&[u8]>, room: usize, unit: usize) -> (Vec<u8>, u8) {
    let Some(extensions) = extensions.filter(|extensions| extensions.len() + LEAST_QUOTED <= room) else {
        return (quoted.get(..room).unwrap_or(quoted).to_vec(), 0);
    };
    let most = ((room - extensions.len()) / unit).min(u8::MAX.into()) * unit;
    let mut body = quoted.get(..most).unwrap_or(quoted).to_vec();
    body.resize(body.len().max(LEAST_QUOTED).next_multiple_of(unit), 0);
    let length = (body.len() / unit) as u8;
    body.extend_from_slice(extensions);
    (body, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_joined_comes_apart_again(quoted: Vec<u8>, objects in prop::collection::vec(any::<u8>(), 3..600), eight: bool, room in 200usize..1300) {
            let unit = if eight { 8 } else { 4 };
            let extensions = [&[0x20][..], &objects].concat();
            let (body, length) = join(&quoted, Some(&extensions), room, unit);
            prop_assert!(body.len() <= room);
            let (first, second) = split(&body, usize::from(length) * unit);
            prop_assert_eq!(second.is_some(), extensions.len() + 128 <= room);
            prop_assert!(second.is_none_or(|second| second == extensions && first.len() >= 128));
            let same = quoted.len().min(first.len());
            prop_assert_eq!(&first[..same], &quoted[..same]);
        }

        #[test]
        fn no_bytes_and_no_length_panic(body: Vec<u8>, length in 0usize..2048) {
            let (quoted, extensions) = split(&body, length);
            prop_assert!(quoted.len() + extensions.map_or(0, <[u8]>::len) <= body.len());
        }
    }
}

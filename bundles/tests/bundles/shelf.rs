//! A sealed bundle as a shelf: what is served from it.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use crate::made::{Workshop, bytes};
use textnlp_bundle::Bundle;
use textnlp_bundle::file_source::FileSource;

#[test]
fn bundle_serves_every_file_at_any_offset() {
    let made = Workshop::new();
    let inputs = made.inputs();
    made.pack("a.tar", &inputs);
    let bundle = Bundle::open(&made.path("a.tar")).unwrap();
    let shelf: &dyn FileSource = &bundle;
    assert_eq!(shelf.list().count(), inputs.files.len());
    for input in &inputs.files {
        let wanted = bytes(input);
        let size = wanted.len() as u64;
        assert_eq!(shelf.find(&input.path).unwrap().size, size, "{}", input.path);
        // Blocks that divide no chunk, a read across the end, and one behind it.
        let (mut found, mut block) = (Vec::new(), vec![0; 300_001]);
        loop {
            let n = shelf.read_at(&input.path, found.len() as u64, &mut block).unwrap();
            found.extend_from_slice(&block[..n]);
            if n < block.len() {
                break;
            }
        }
        assert!(found == wanted, "{}", input.path);
        assert_eq!(shelf.read_at(&input.path, size + 10, &mut block).unwrap(), 0);
    }
    assert_eq!(shelf.read_at("models/none", 0, &mut [0; 8]).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn damaged_chunk_is_not_served_and_its_neighbours_are() {
    let made = Workshop::new();
    made.pack("a.tar", &made.inputs());
    let path = made.path("a.tar");
    let (at, size) = {
        let bundle = Bundle::open(&path).unwrap();
        let file = bundle.manifest().files.iter().max_by_key(|file| file.chunks.len()).unwrap().clone();
        (bundle.file_offset(&file.path).unwrap(), (file.path, file.chunks))
    };
    let (name, chunks) = size;
    assert!(chunks.len() > 2, "{name} has several chunks");
    let second = u64::from(chunks[0].size);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at + second).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at + second).unwrap();

    let bundle = Bundle::open(&path).unwrap();
    let shelf: &dyn FileSource = &bundle;
    let mut block = [0; 16];
    shelf.read_at(&name, 0, &mut block).unwrap();
    for _ in 0..2 {
        let error = shelf.read_at(&name, second + 3, &mut block).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains(&name) && error.to_string().contains("chunk 1"), "{error}");
    }
    shelf.read_at(&name, second + u64::from(chunks[1].size), &mut block).unwrap();
}

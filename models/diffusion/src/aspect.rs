//! Resolutions by name: the tables of upstream's `datasets/aspect.py`, verbatim.
//!
//! Sizes are height x width in pixels; an aspect is height:width, so `9:16` is landscape. The
//! tables contain hand edits and are therefore data, not a formula. Their order decides ties. The
//! square-ish tables (`256` to `2880`) have keys such as `1.0` where names give `1.00`, so most
//! named aspects are not defined for them; that is upstream's behavior.

use std::sync::LazyLock;

use crate::Error;

/// Which upstream release's tables; they differ in what they hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Release {
    /// Without `2k`, `2048` and `2880`.
    V1_1,
    /// With all.
    V1_2,
}

/// One resolution: about how many pixels, and the size for each aspect ratio.
#[derive(Clone, PartialEq, Debug)]
pub struct Resolution {
    /// Upstream's name, such as `240p`.
    pub name: &'static str,
    /// Pixels of a frame, about.
    pub pixels: usize,
    /// (height / width as upstream writes it, height, width), in upstream's order.
    pub sizes: Vec<(&'static str, usize, usize)>,
}

/// Every resolution, in upstream's order.
pub const RESOLUTION_NAMES: [&str; 13] = [
    "144p", "256", "240p", "360p", "512", "480p", "720p", "1024", "1080p", "2k", "2048", "2880",
    "4k",
];

/// (aspect, key in the tables) for each named aspect.
pub const ASPECT_NAMES: [(&str, &str); 17] = [
    ("3:8", "0.38"),
    ("9:21", "0.43"),
    ("12:25", "0.48"),
    ("1:2", "0.50"),
    ("9:17", "0.53"),
    ("27:50", "0.54"),
    ("9:16", "0.56"),
    ("5:8", "0.62"),
    ("2:3", "0.67"),
    ("3:4", "0.75"),
    ("1:1", "1.00"),
    ("4:3", "1.33"),
    ("3:2", "1.50"),
    ("16:9", "1.78"),
    ("17:9", "1.89"),
    ("2:1", "2.00"),
    ("50:27", "2.08"),
];

/// Columns 144p 240p 360p 480p 720p 1080p 2k 4k.
const WIDE: &str = "
0.38 117x312 196x522 294x784 392x1046 588x1568 882x2352 1176x3136 1764x4704
0.43 125x291 210x490 314x732 420x980 628x1466 942x2198 1256x2930 1886x4400
0.48 133x277 222x462 332x692 444x925 666x1388 998x2080 1330x2770 1996x4158
0.50 135x270 226x452 340x680 452x904 678x1356 1018x2036 1358x2716 2036x4072
0.53 139x262 232x438 350x662 466x880 698x1318 1048x1980 1398x2640 2096x3960
0.54 141x260 236x436 352x652 470x870 706x1306 1058x1958 1412x2612 2118x3918
0.56 144x256 240x426 360x640 480x854 720x1280 1080x1920 1440x2560 2160x3840
0.62 151x241 252x404 380x608 506x810 758x1212 1138x1820 1518x2428 2276x3642
0.67 156x234 262x393 392x588 522x784 784x1176 1176x1764 1568x2352 2352x3528
0.75 166x221 276x368 416x554 554x738 832x1110 1248x1664 1662x2216 2494x3326
1.00 192x192 320x320 480x480 640x640 960x960 1440x1440 1920x1920 2880x2880
1.33 221x165 370x278 554x416 740x555 1108x832 1662x1246 2218x1664 3326x2494
1.50 235x156 392x262 588x392 784x522 1176x784 1764x1176 2352x1568 3528x2352
1.78 256x144 426x240 640x360 854x480 1280x720 1920x1080 2560x1440 3840x2160
1.89 263x139 440x232 660x350 880x466 1320x698 1980x1048 2638x1396 3958x2096
2.00 271x135 452x226 678x340 906x454 1358x680 2036x1018 2716x1358 4072x2036
2.08 277x132 462x222 692x332 924x444 1386x666 2078x998 2772x1330 4156x1994
";

/// Columns 256 512 1024 2048.
const SQUARE: &str = "
0.25 128x512 256x1024 512x2048 1024x4096
0.26 128x496 256x992 512x1984 1024x3968
0.27 128x480 256x960 512x1920 1024x3840
0.28 128x464 256x928 512x1856 1024x3712
0.32 144x448 288x896 576x1792 1152x3584
0.33 144x432 288x864 576x1728 1152x3456
0.35 144x416 288x832 576x1664 1152x3328
0.4  160x400 320x800 640x1600 1280x3200
0.42 160x384 320x768 640x1536 1280x3072
0.48 176x368 352x736 704x1472 1408x2944
0.5  176x352 352x704 704x1408 1408x2816
0.52 176x336 352x672 704x1344 1408x2688
0.57 192x336 384x672 768x1344 1536x2688
0.6  192x320 384x640 768x1280 1536x2560
0.68 208x304 416x608 832x1216 1664x2432
0.72 208x288 416x576 832x1152 1664x2304
0.78 224x288 448x576 896x1152 1792x2304
0.82 224x272 448x544 896x1088 1792x2176
0.88 240x272 480x544 960x1088 1920x2176
0.94 240x256 480x512 960x1024 1920x2048
1.0  256x256 512x512 1024x1024 2048x2048
1.07 256x240 512x480 1024x960 2048x1920
1.13 272x240 544x480 1088x960 2176x1920
1.21 272x224 544x448 1088x896 2176x1792
1.29 288x224 576x448 1152x896 2304x1792
1.38 288x208 576x416 1152x832 2304x1664
1.46 304x208 608x416 1216x832 2432x1664
1.67 320x192 640x384 1280x768 2560x1536
1.75 336x192 672x384 1344x768 2688x1536
2.0  352x176 704x352 1408x704 2816x1408
2.09 368x176 736x352 1472x704 2944x1408
2.4  384x160 768x320 1536x640 3072x1280
2.5  400x160 800x320 1600x640 3200x1280
2.89 416x144 832x288 1664x576 3328x1152
3.0  432x144 864x288 1728x576 3456x1152
3.11 448x144 896x288 1792x576 3584x1152
3.62 464x128 928x256 1856x512 3712x1024
3.75 480x128 960x256 1920x512 3840x1024
3.88 496x128 992x256 1984x512 3968x1024
4.0  512x128 1024x256 2048x512 4096x1024
";

const SQUARE_2880: &str = "
0.25:1408x5760 0.26:1408x5568 0.27:1408x5376 0.28:1408x5184 0.32:1600x4992 0.33:1600x4800
0.34:1600x4672 0.4:1792x4480 0.42:1792x4288 0.47:1920x4096 0.49:1920x3904 0.51:1920x3776
0.55:2112x3840 0.59:2112x3584 0.68:2304x3392 0.72:2304x3200 0.78:2496x3200 0.83:2496x3008
0.89:2688x3008 0.93:2688x2880 1.0:2880x2880 1.07:2880x2688 1.12:3008x2688 1.21:3008x2496
1.28:3200x2496 1.39:3200x2304 1.47:3392x2304 1.7:3584x2112 1.82:3840x2112 2.03:3904x1920
2.13:4096x1920 2.39:4288x1792 2.5:4480x1792 2.92:4672x1600 3.0:4800x1600 3.12:4992x1600
3.68:5184x1408 3.82:5376x1408 3.95:5568x1408 4.0:5760x1408
";

fn size(text: &'static str) -> (usize, usize) {
    let (height, width) = text.split_once('x').expect("table entries are HxW");
    let number = |text: &str| text.parse().expect("table entries are numbers");
    (number(height), number(width))
}

fn column(table: &'static str, column: usize) -> Vec<(&'static str, usize, usize)> {
    let rows = table.lines().filter(|row| !row.is_empty());
    rows.map(|row| {
        let mut words = row.split_whitespace();
        let key = words.next().expect("rows begin with a key");
        let (height, width) = size(words.nth(column).expect("rows have every column"));
        (key, height, width)
    })
    .collect()
}

static RESOLUTIONS: LazyLock<Vec<Resolution>> = LazyLock::new(|| {
    let wide = |name, pixels, n| Resolution { name, pixels, sizes: column(WIDE, n) };
    let square = |name, pixels, n| Resolution { name, pixels, sizes: column(SQUARE, n) };
    let list_2880 = SQUARE_2880.split_whitespace().map(|entry| {
        let (key, text) = entry.split_once(':').expect("entries are key:HxW");
        let (height, width) = size(text);
        (key, height, width)
    });
    let mut all = vec![
        wide("144p", 36_864, 0),
        square("256", 65_536, 0),
        wide("240p", 102_240, 1),
        wide("360p", 230_400, 2),
        square("512", 262_144, 1),
        wide("480p", 409_920, 3),
        wide("720p", 921_600, 4),
        square("1024", 1_048_576, 2),
        wide("1080p", 2_073_600, 5),
        wide("2k", 3_686_400, 6),
        square("2048", 4_194_304, 3),
        Resolution { name: "2880", pixels: 8_294_400, sizes: list_2880.collect() },
        wide("4k", 8_294_400, 7),
    ];
    // The 4k table lists 0.62 before 0.56.
    if let Some(last) = all.last_mut() {
        last.sizes.swap(6, 7);
    }
    all
});

/// The table called `name` in `release`.
///
/// # Errors
/// Lists the names that exist.
pub fn resolution(name: &str, release: Release) -> Result<&'static Resolution, Error> {
    let exists = |resolution: &&Resolution| {
        release == Release::V1_2 || !matches!(resolution.name, "2k" | "2048" | "2880")
    };
    RESOLUTIONS.iter().filter(exists).find(|resolution| resolution.name == name).ok_or_else(|| {
        let known: Vec<&str> = RESOLUTIONS.iter().filter(exists).map(|r| r.name).collect();
        Error::Resolution { given: name.to_string(), known: known.join(" ") }
    })
}

/// The key of `resolution` closest to a frame of `height` x `width`; the first of equally close.
pub fn closest_aspect(resolution: &Resolution, height: usize, width: usize) -> &'static str {
    let ratio = height as f64 / width as f64;
    let mut best = ("", f64::INFINITY);
    for &(key, ..) in &resolution.sizes {
        let distance = (key.parse::<f64>().expect("keys are numbers") - ratio).abs();
        if distance < best.1 {
            best = (key, distance);
        }
    }
    best.0
}

/// (height, width) for a resolution and an aspect such as `9:16`.
///
/// # Errors
/// Lists the resolutions, or the aspects that exist for this one.
pub fn image_size(name: &str, aspect: &str, release: Release) -> Result<(usize, usize), Error> {
    let resolution = resolution(name, release)?;
    let named = ASPECT_NAMES.iter().find(|(name, _)| *name == aspect);
    let row = named.and_then(|(_, key)| resolution.sizes.iter().find(|row| row.0 == *key));
    if let Some(&(_, height, width)) = row {
        return Ok((height, width));
    }
    let exists = |key: &str| resolution.sizes.iter().any(|row| row.0 == key);
    let known: Vec<&str> =
        ASPECT_NAMES.iter().filter(|(_, key)| exists(key)).map(|(name, _)| *name).collect();
    Err(Error::Aspect {
        given: aspect.to_string(),
        resolution: name.to_string(),
        known: known.join(" "),
    })
}

/// A count of frames: a number, or a name of 1.2 such as `4s` or `2x` (of 51 frames).
///
/// # Errors
/// Refuses 0 and what is no number.
pub fn num_frames(text: &str) -> Result<usize, Error> {
    Ok(match text {
        "1x" | "2s" => 51,
        "2x" | "4s" => 102,
        "4x" | "8s" => 204,
        "8x" | "16s" => 408,
        "16x" | "32s" => 816,
        _ => match text.parse() {
            Ok(count) if count > 0 => count,
            _ => return Err(Error::Frames(text.to_string())),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_exists() {
        for (resolution, aspect, expected) in [
            ("8k", "9:16", "`8k` is unknown; expected one of 144p 256"),
            ("2k", "9:16", "`2k` is unknown"),
            ("256", "9:16", "not defined for 256; expected one of 12:25"),
            ("240p", "16-9", "`16-9` is not defined"),
        ] {
            let error = image_size(resolution, aspect, Release::V1_1).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for text in ["0", "-1", "s", ""] {
            assert!(num_frames(text).is_err());
        }
    }
}

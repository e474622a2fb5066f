//! The H.264 encoder: planes to access units in MP4's form (lengths instead of start codes).
//!
//! The quantizer is held constant by bounding it from both sides, so quality does not depend on size,
//! motion or rate. Invariant: one thread, no frame is skipped, every frame gives one access unit.

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, ColorPrimaries, Complexity, Encoder, EncoderConfig, FrameRate, FrameType,
    IntraFramePeriod, MatrixCoefficients, QpRange, RateControlMode, TransferCharacteristics,
    UsageType, VuiConfig,
};

use super::color::{Matrix, Planes};
use crate::Fps;
use crate::error::Fault;

/// Quantizers, of 0..=51. The first gives above 40 dB on ordinary frames. Noise can be larger after coding
/// than the encoder's buffer, one raw frame; then the next one takes over for the rest of the clip.
const QPS: [u8; 4] = [16, 24, 32, 44];

/// Seconds between frames that can be jumped to.
const SECONDS_BETWEEN_KEYFRAMES: f64 = 2.0;

/// Above anything that `QPS` need, so the rate never limits the quality.
const BITS_PER_SECOND: u32 = 200_000_000;

/// H.264 NAL unit types (table 7-1).
const NAL_SPS: u8 = 7;
const NAL_PPS: u8 = 8;

/// One encoded frame.
#[derive(Debug)]
pub(crate) struct AccessUnit {
    /// NAL units, each behind its length as a 32-bit big-endian number.
    pub(crate) bytes: Vec<u8>,
    /// Whether decoding can start here.
    pub(crate) is_keyframe: bool,
}

/// An encoder for frames of one size.
pub(crate) struct H264 {
    encoder: Encoder,
    planes: Planes,
    fps: Fps,
    matrix: Matrix,
    /// Index into `QPS`.
    qp: usize,
    /// Keyframes that `encoder` has made.
    keyframes: u32,
    /// Whether the last frame was a keyframe.
    after_keyframe: bool,
    sps: Vec<u8>,
    pps: Vec<u8>,
}

impl H264 {
    /// An encoder for frames of `size`, `[width, height]`, odd sizes padded to even.
    pub(crate) fn new(size: [u32; 2], fps: Fps, matrix: Matrix) -> Result<Self, Fault> {
        Ok(Self {
            encoder: open(fps, matrix, QPS[0])?,
            planes: Planes::new(size, matrix),
            fps,
            matrix,
            qp: 0,
            keyframes: 0,
            after_keyframe: false,
            sps: Vec::new(),
            pps: Vec::new(),
        })
    }

    /// Encodes the next frame, `[height, width, 3]`.
    pub(crate) fn encode(&mut self, rgb: &[u8]) -> Result<AccessUnit, Fault> {
        self.planes.fill(rgb);
        loop {
            match self.encode_planes() {
                Ok(unit) => {
                    self.keyframes += u32::from(unit.is_keyframe);
                    self.after_keyframe = unit.is_keyframe;
                    return Ok(unit);
                }
                Err(_) if self.qp + 1 < QPS.len() => {
                    self.qp += 1;
                    self.encoder = open(self.fps, self.matrix, QPS[self.qp])?;
                    if self.after_keyframe && self.keyframes % 2 == 1 {
                        // H.264 7.4.3: two keyframes in a row differ in `idr_pic_id`, which counts from 0 in
                        // each encoder. Losing one makes it odd, where the last one was even.
                        let _ = self.encode_planes();
                        self.encoder.force_intra_frame();
                        self.keyframes = 1;
                    } else {
                        self.keyframes = 0;
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    fn encode_planes(&mut self) -> Result<AccessUnit, Fault> {
        let stream = self.encoder.encode(&self.planes).map_err(refused)?;
        let is_keyframe = matches!(stream.frame_type(), FrameType::IDR);
        let mut bytes = Vec::new();
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for nal in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
                let nal = without_start_code(nal)?;
                let kept = match nal.first().map(|byte| byte & 0x1f) {
                    Some(NAL_SPS) => &mut self.sps,
                    Some(NAL_PPS) => &mut self.pps,
                    _ => {
                        bytes.extend((nal.len() as u32).to_be_bytes());
                        bytes.extend(nal);
                        continue;
                    }
                };
                // The file holds one of each for all frames.
                if kept.is_empty() {
                    kept.extend(nal);
                } else if kept != nal {
                    return Err(Fault::Encode("the encoder changed its parameter sets".into()));
                }
            }
        }
        if bytes.is_empty() || self.sps.len() < 4 || self.pps.is_empty() {
            return Err(Fault::Encode("the encoder dropped a frame".into()));
        }
        Ok(AccessUnit { bytes, is_keyframe })
    }

    /// The sequence parameter set, at least four bytes once a frame was encoded.
    pub(crate) fn sps(&self) -> &[u8] {
        &self.sps
    }

    /// The picture parameter set.
    pub(crate) fn pps(&self) -> &[u8] {
        &self.pps
    }
}

/// An encoder with a constant quantizer.
fn open(fps: Fps, matrix: Matrix, qp: u8) -> Result<Encoder, Fault> {
    let matrix_coefficients = match matrix {
        Matrix::Bt601 => MatrixCoefficients::Smpte170M,
        Matrix::Bt709 => MatrixCoefficients::Bt709,
    };
    let vui = VuiConfig::new()
        .color_primaries(ColorPrimaries::Bt709)
        .transfer_characteristics(TransferCharacteristics::Srgb)
        .matrix_coefficients(matrix_coefficients)
        .full_range(false);
    let keyframe_period = (fps.as_f64() * SECONDS_BETWEEN_KEYFRAMES).ceil() as u32;
    let config = EncoderConfig::new()
        .usage_type(UsageType::CameraVideoRealTime)
        .complexity(Complexity::High)
        // The one mode that has neither a rate target nor skipped frames, but heeds the bounds.
        .rate_control_mode(RateControlMode::Bufferbased)
        .bitrate(BitRate::from_bps(BITS_PER_SECOND))
        .qp(QpRange::new(qp, qp))
        .skip_frames(false)
        // The encoder plans its rate with this; the file's timing is exact in `moov`.
        .max_frame_rate(FrameRate::from_hz((fps.as_f64() as f32).clamp(1.0, 60.0)))
        .intra_frame_period(IntraFramePeriod::from_num_frames(keyframe_period))
        .scene_change_detect(false)
        .adaptive_quantization(false)
        .background_detection(false)
        .num_threads(1)
        .vui(vui);
    Encoder::with_api_config(OpenH264API::from_source(), config).map_err(refused)
}

fn without_start_code(nal: &[u8]) -> Result<&[u8], Fault> {
    nal.strip_prefix(&[0, 0, 0, 1])
        .or_else(|| nal.strip_prefix(&[0, 0, 1]))
        .ok_or_else(|| Fault::Encode("the encoder gave a NAL unit without a start code".into()))
}

// Taken by value for `map_err`.
#[allow(clippy::needless_pass_by_value, reason = "the signature map_err wants")]
fn refused(error: openh264::Error) -> Fault {
    Fault::Encode(format!("the H.264 encoder refused: {error}"))
}

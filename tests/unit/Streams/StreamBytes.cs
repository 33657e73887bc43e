using System.Buffers;
using BlockServer.Core;
using BlockServer.Streams;

namespace BlockServer.Tests.Unit.Streams;

/// <summary>Whole streams in RAM: made, and read as strictly as the daemon reads them.</summary>
internal static class StreamBytes
{
    public static readonly Guid Id = new("00112233-4455-6677-8899-aabbccddeeff");

    public static StreamHeader Full(ulong size) => new()
    {
        StreamId = Id,
        VolumeUuid = new Guid("10112233-4455-6677-8899-aabbccddeeff"),
        VolumeName = "vm1",
        SizeBytes = size,
        Target = new Guid("20112233-4455-6677-8899-aabbccddeeff"),
        TargetName = "monday",
        UnixSeconds = 1_700_000_000,
    };

    public static StreamHeader Increment(ulong size) => Full(size) with
    {
        Base = new Guid("30112233-4455-6677-8899-aabbccddeeff"),
        BaseSizeBytes = size,
    };

    /// <summary>A stream with every kind of frame; where each frame begins, and the end.</summary>
    public static byte[] Sample(StreamHeader header, ICompressor? compressor, out List<int> borders)
    {
        var output = new ArrayBufferWriter<byte>();
        header.WriteTo(output.GetSpan(StreamHeader.Size));
        output.Advance(StreamHeader.Size);
        var encoder = new StreamEncoder(header, compressor);
        var data = new byte[8 * Units.BlockBytes];
        new SeededRandom(5).Fill(data.AsSpan(0, 6 * Units.BlockBytes / 2));
        data.AsSpan(3 * Units.BlockBytes).Fill(7);
        borders = [output.WrittenCount];
        Step(borders, () => output.Advance(encoder.Data(0, data.AsSpan(0, 3 * Units.BlockBytes), output.GetSpan(1 << 20))));
        Step(borders, () => output.Advance(encoder.Data(3 * Units.BlockBytes, data.AsSpan(3 * Units.BlockBytes), output.GetSpan(1 << 20))));
        ulong at = 8 * Units.BlockBytes;
        Step(borders, () => output.Advance(encoder.Empty(StreamKind.Zero, at, 4 * Units.BlockBytes, output.GetSpan(64))));
        at += 4 * Units.BlockBytes;
        Step(borders, () => output.Advance(encoder.Empty(StreamKind.Hole, at, header.SizeBytes - at, output.GetSpan(64))));
        Step(borders, () => output.Advance(encoder.End(output.GetSpan(128))));
        return output.WrittenSpan.ToArray();

        void Step(List<int> list, Action write)
        {
            write();
            list.Add(output.WrittenCount);
        }
    }

    /// <summary>Reads a stream to its end; the fault, or null when it is whole. Each frame that was accepted goes to
    /// <paramref name="take"/>.</summary>
    public static string? Read(
        ReadOnlySpan<byte> stream, ICompressor? compressor, Action<StreamFrame, byte[]>? take = null, StreamCursor? from = null,
        StreamHeader? known = null)
    {
        StreamHeader? header = known;
        int at = 0;
        if (header is null)
        {
            if (StreamHeader.TryRead(stream, out header) is { } bad) return bad;
            at = StreamHeader.Size;
        }

        var decoder = new StreamDecoder(header!, compressor, from);
        var content = new byte[StreamHeader.DataBytesMax];
        while (!decoder.IsWhole)
        {
            if (stream.Length - at < StreamFrame.Size) return decoder.Truncated;
            if (decoder.ReadFrame(stream[at..], out StreamFrame frame) is { } fault) return fault;
            at += StreamFrame.Size;
            if (stream.Length - at < frame.PayloadBytes) return decoder.Truncated;
            ReadOnlySpan<byte> payload = stream.Slice(at, frame.PayloadBytes);
            if (decoder.Accept(frame, payload, content) is { } broken) return broken;
            at += frame.PayloadBytes;
            byte[] bytes = frame.Kind != StreamKind.Data ? []
                : frame.Encoding == StreamEncoding.Raw ? payload.ToArray() : content[..(int)frame.LengthBytes];
            take?.Invoke(frame, bytes);
        }

        return at == stream.Length ? null : "bytes follow the end";
    }
}

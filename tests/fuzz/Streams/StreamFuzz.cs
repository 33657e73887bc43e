using System.Buffers.Binary;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Streams;
using Xunit;

namespace BlockServer.Tests.Fuzz.Streams;

/// <summary>
/// Damaged streams: an answer, never an exception, nothing kept that grows with what they claim. Half of the inputs are sealed
/// again after the damage, so that the checks behind the checksums are reached too. Inputs: BLOCKSERVER_FUZZ_INPUTS.
/// </summary>
public sealed class StreamFuzz
{
    private static readonly int Inputs =
        int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_INPUTS"), CultureInfo.InvariantCulture, out int inputs)
            ? inputs : 500_000;

    private static StreamHeader Header => new()
    {
        StreamId = new Guid("00112233-4455-6677-8899-aabbccddeeff"),
        VolumeUuid = new Guid("10112233-4455-6677-8899-aabbccddeeff"),
        VolumeName = "vm1",
        SizeBytes = Units.MiB + 512,
        Base = new Guid("20112233-4455-6677-8899-aabbccddeeff"),
        BaseSizeBytes = Units.MiB,
        Target = new Guid("30112233-4455-6677-8899-aabbccddeeff"),
        TargetName = "tuesday",
        UnixSeconds = 77,
    };

    [Fact]
    public void Headers()
    {
        var random = new SeededRandom(2026);
        var golden = new byte[StreamHeader.Size];
        Header.WriteTo(golden);
        byte[] bytes = new byte[golden.Length], again = new byte[golden.Length];
        int accepted = 0;
        for (int i = 0; i < Inputs; i++)
        {
            golden.CopyTo(bytes, 0);
            Mutator.Mutate(random, random.NextChance(0.5) ? bytes.AsSpan(8, 240) : bytes);
            if (random.NextChance(0.5)) BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(508), Crc32C.Compute(bytes.AsSpan(0, 508)));
            if (StreamHeader.TryRead(bytes, out StreamHeader? header) is not null) continue;
            accepted++;
            Assert.True(header!.SizeBytes <= Units.VolumeBytesMax);
            header.WriteTo(again);
            Assert.Equal(bytes, again);
        }

        Assert.InRange(accepted, 1, Inputs - 1);
        for (int length = 0; length < golden.Length; length++) Assert.NotNull(StreamHeader.TryRead(golden.AsSpan(0, length), out _));
    }

    [Fact]
    public void Frames()
    {
        var random = new SeededRandom(2027);
        var data = new byte[3 * Units.BlockBytes];
        random.Fill(data);
        byte[] stream = Stream(data);
        byte[] bytes = new byte[stream.Length], content = new byte[StreamHeader.DataBytesMax];
        int whole = 0, some = 0;
        for (int i = 0; i < Inputs; i++)
        {
            stream.CopyTo(bytes, 0);
            int frame = random.NextBelow(3);
            int start = frame == 0 ? 0 : frame == 1 ? 64 + data.Length : 128 + data.Length;
            Mutator.Mutate(random, bytes.AsSpan(start, 64));
            if (random.NextChance(0.5)) BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(start + 60), Crc32C.Compute(bytes.AsSpan(start, 60)));
            int accepted = Walk(bytes, content);
            if (accepted == 4) whole++;
            if (accepted is > 0 and < 4) some++;
        }

        Assert.True(some > 0);
        Assert.InRange(whole, 0, Inputs / 50); // damage that is none
    }

    [Fact]
    public void Cursors()
    {
        var random = new SeededRandom(2028);
        string golden = StreamCursor.AtStart(Header).ToString();
        byte[] good = Convert.FromHexString(golden);
        for (int i = 0; i < Inputs; i++)
        {
            byte[] bytes = [.. good];
            Mutator.Mutate(random, bytes);
            if (random.NextChance(0.5)) BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(bytes.Length - 4), Crc32C.Compute(bytes.AsSpan(0, bytes.Length - 4)));
            string text = Convert.ToHexStringLower(bytes);
            if (StreamCursor.TryParse(text) is { } cursor) Assert.Equal(text, cursor.ToString());
        }
    }

    private static byte[] Stream(byte[] data)
    {
        var encoder = new StreamEncoder(Header);
        var stream = new byte[data.Length + 1024];
        int at = encoder.Data(0, data, stream);
        at += encoder.Empty(StreamKind.Zero, 5 * Units.BlockBytes, Units.BlockBytes, stream.AsSpan(at));
        at += encoder.Empty(StreamKind.Hole, Units.MiB, 512, stream.AsSpan(at));
        at += encoder.End(stream.AsSpan(at));
        return stream[..at];
    }

    private static int Walk(byte[] stream, byte[] content)
    {
        var decoder = new StreamDecoder(Header);
        int at = 0, accepted = 0;
        while (!decoder.IsWhole && stream.Length - at >= StreamFrame.Size)
        {
            if (decoder.ReadFrame(stream.AsSpan(at), out StreamFrame frame) is not null) break;
            at += StreamFrame.Size;
            Assert.InRange(frame.PayloadBytes, 0, StreamHeader.DataBytesMax);
            Assert.True(frame.EndBytes <= Header.SizeBytes);
            if (stream.Length - at < frame.PayloadBytes) break;
            if (decoder.Accept(frame, stream.AsSpan(at, frame.PayloadBytes), content) is not null) break;
            at += frame.PayloadBytes;
            accepted++;
        }

        return accepted;
    }
}

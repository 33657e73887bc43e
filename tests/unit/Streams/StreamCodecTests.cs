using System.Buffers.Binary;
using System.Security.Cryptography;
using BlockServer.Core;
using BlockServer.Io;
using BlockServer.Streams;
using Xunit;

namespace BlockServer.Tests.Unit.Streams;

/// <summary>The format as docs/stream.md writes it down, and what of it is refused.</summary>
public class StreamCodecTests
{
    private const ulong Size = 2 * Units.MiB;

    [Fact]
    public void A_header_lies_in_the_stream_as_it_always_did()
    {
        var bytes = new byte[StreamHeader.Size];
        StreamBytes.Increment(3 * Units.MiB).WriteTo(bytes);
        Assert.Equal(
            "424C4B5354524D1A" + "0100" + "0002" + "01000000" + "00112233445566778899AABBCCDDEEFF" + "10112233445566778899AABBCCDDEEFF"
            + "0000300000000000" + "00100000" + "00001000" + "30112233445566778899AABBCCDDEEFF" + "20112233445566778899AABBCCDDEEFF"
            + "00F1536500000000" + "0000300000000000" + "03766D31", Convert.ToHexString(bytes.AsSpan(0, 116)));
        Assert.Equal("066D6F6E646179", Convert.ToHexString(bytes.AsSpan(176, 7)));
        Assert.Equal(Crc32C.Compute(bytes.AsSpan(0, 508)), BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(508)));
        Assert.Null(StreamHeader.TryRead(bytes, out StreamHeader? read));
        Assert.Equal(StreamBytes.Increment(3 * Units.MiB), read);
    }

    [Fact]
    public void Frames_lie_in_the_stream_as_they_always_did()
    {
        byte[] stream = StreamBytes.Sample(StreamBytes.Full(Size), null, out List<int> borders);
        Assert.Equal([512, 12864, 33408, 33472, 33536, 33664], borders);
        Assert.Equal(
            "4246524D" + "0300" + "0000" + "0300000000000000" + "00C0000000000000" + "00401F0000000000" + "00000000" + "00000000",
            Convert.ToHexString(stream.AsSpan(33472, 40)));
        Assert.Equal(
            "4246524D" + "0400" + "0000" + "0400000000000000" + "0000200000000000" + "0000000000000000" + "40000000",
            Convert.ToHexString(stream.AsSpan(33536, 36)));
        // Frames, bytes of data, zeros and holes; then the chain behind the last frame.
        Assert.Equal(
            "0400000000000000" + "0080000000000000" + "0040000000000000" + "00401F0000000000", Convert.ToHexString(stream.AsSpan(33600, 32)));
        byte[] chain = SHA256.HashData(stream.AsSpan(0, 512));
        foreach (int at in borders[..^2]) chain = SHA256.HashData([.. chain, .. stream[at..(at + 40)]]);
        Assert.Equal(chain, stream[33632..]);
        Assert.Equal("5CF8323A", Convert.ToHexString(chain.AsSpan(0, 4)));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void What_is_written_is_read(bool isPacked)
    {
        Lz4? packer = isPacked ? Lz4.Instance : null;
        Assert.Equal(isPacked, packer is not null);
        byte[] stream = StreamBytes.Sample(StreamBytes.Full(Size), packer, out _);
        var frames = new List<StreamFrame>();
        Assert.Null(StreamBytes.Read(stream, packer, (frame, _) => frames.Add(frame)));
        Assert.Equal([StreamKind.Data, StreamKind.Data, StreamKind.Zero, StreamKind.Hole, StreamKind.End], frames.Select(f => f.Kind));
        Assert.Equal(isPacked, frames.Any(f => f.Encoding == StreamEncoding.Lz4));
        if (isPacked) Assert.Contains("liblz4", StreamBytes.Read(stream, null), StringComparison.Ordinal);
    }

    [Fact]
    public void Damage_of_any_byte_is_refused_at_its_frame()
    {
        byte[] good = StreamBytes.Sample(StreamBytes.Full(Size), Lz4.Instance, out List<int> borders);
        var random = new SeededRandom(9);
        for (int at = 0; at < good.Length; at += at < 600 || borders.Any(b => at >= b && at < b + 128) ? 1 : 101)
        {
            byte[] bad = [.. good];
            bad[at] ^= (byte)(1 << random.NextBelow(8));
            int accepted = 0;
            Assert.NotNull(StreamBytes.Read(bad, Lz4.Instance, (_, _) => accepted++));
            Assert.Equal(Math.Max(0, borders.FindLastIndex(b => b <= at)), accepted);
        }
    }

    [Fact]
    public void A_stream_that_ends_early_is_not_whole_wherever_it_ends()
    {
        byte[] good = StreamBytes.Sample(StreamBytes.Full(Size), null, out List<int> borders);
        foreach (int end in borders[..^1].SelectMany(b => new[] { b - 1, b, b + 1, b + 63, b + 64, b + 65 }).Append(0).Append(good.Length - 1))
        {
            int accepted = 0;
            Assert.Contains("end", StreamBytes.Read(good.AsSpan(0, end), null, (_, _) => accepted++), StringComparison.Ordinal);
            Assert.Equal(Math.Max(0, borders.FindLastIndex(b => b <= end)), accepted);
        }

        Assert.NotNull(StreamBytes.Read([.. good, 0], null));
    }

    [Fact]
    public void Frames_that_are_left_out_doubled_swapped_or_of_another_stream_are_refused()
    {
        byte[] good = StreamBytes.Sample(StreamBytes.Increment(Size), null, out List<int> b);
        byte[] other = StreamBytes.Sample(StreamBytes.Increment(Size) with { StreamId = Guid.Parse("ff112233-4455-6677-8899-aabbccddeeff") }, null, out _);
        Assert.Null(StreamBytes.Read(good, null));
        Assert.Contains("missing", StreamBytes.Read([.. good[..b[1]], .. good[b[2]..]], null), StringComparison.Ordinal);
        Assert.NotNull(StreamBytes.Read([.. good[..b[1]], .. good[b[0]..]], null));
        Assert.NotNull(StreamBytes.Read([.. good[..b[1]], .. good[b[2]..b[3]], .. good[b[1]..b[2]], .. good[b[3]..]], null));
        for (int i = 0; i + 1 < b.Count; i++)
        {
            string? fault = StreamBytes.Read([.. good[..b[i]], .. other[b[i]..b[i + 1]], .. good[b[i + 1]..]], null);
            Assert.Contains("digest", fault, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Claimed_lengths_cost_nothing()
    {
        byte[] good = StreamBytes.Sample(StreamBytes.Full(Size), null, out List<int> borders);
        foreach ((int at, int width) in new[] { (16, 8), (24, 8), (32, 4) })
        {
            foreach (ulong value in new[] { uint.MaxValue, 1UL << 31, (1UL << 20) + 1, ulong.MaxValue, ulong.MaxValue - 4095, 1UL << 46 })
            {
                byte[] bad = [.. good];
                Span<byte> header = bad.AsSpan(borders[0], StreamFrame.Size);
                if (width == 8) BinaryPrimitives.WriteUInt64LittleEndian(header[at..], value);
                else BinaryPrimitives.WriteUInt32LittleEndian(header[at..], (uint)value);
                BinaryPrimitives.WriteUInt32LittleEndian(header[60..], Crc32C.Compute(header[..60]));
                StreamHeader.TryRead(bad, out StreamHeader? known);
                var decoder = new StreamDecoder(known!);
                long before = GC.GetAllocatedBytesForCurrentThread();
                Assert.NotNull(decoder.ReadFrame(header, out _));
                Assert.InRange(GC.GetAllocatedBytesForCurrentThread() - before, 0, 64 << 10);
            }
        }
    }

    [Fact]
    public void Headers_that_cannot_be_are_refused()
    {
        StreamHeader full = StreamBytes.Full(Size), increment = StreamBytes.Increment(Size);
        foreach (StreamHeader bad in new[]
        {
            full with { StreamId = Guid.Empty }, full with { SizeBytes = 0 }, full with { SizeBytes = Units.VolumeBytesMax + 512 },
            full with { SizeBytes = Size + 1 }, full with { BaseSizeBytes = Size }, full with { TargetName = "" }, full with { TargetName = "A/b" },
            full with { Target = null }, full with { VolumeName = "../x" }, increment with { BaseSizeBytes = 0 }, increment with { Target = increment.Base },
        })
        {
            var bytes = new byte[StreamHeader.Size];
            bad.WriteTo(bytes);
            Assert.NotNull(StreamHeader.TryRead(bytes, out StreamHeader? read));
            Assert.Null(read);
        }

        var foreign = new byte[4096];
        Assert.Contains("no stream of blockd", StreamHeader.TryRead(foreign, out _), StringComparison.Ordinal);
    }

    [Fact]
    public void Both_sides_go_on_from_a_cursor()
    {
        StreamHeader header = StreamBytes.Full(Size);
        byte[] good = StreamBytes.Sample(header, null, out List<int> borders);
        for (int i = 0; i + 1 < borders.Count; i++)
        {
            var decoder = new StreamDecoder(header);
            for (int n = 0; n < i; n++)
            {
                Assert.Null(decoder.ReadFrame(good.AsSpan(borders[n]), out StreamFrame frame));
                Assert.Null(decoder.Accept(frame, good.AsSpan(borders[n] + 64, frame.PayloadBytes), new byte[1 << 20]));
            }

            StreamCursor cursor = StreamCursor.TryParse(decoder.Cursor.ToString())!;
            Assert.Equal((ulong)borders[i], cursor.PositionBytes);
            Assert.Equal((ulong)i, cursor.Sequence);
            Assert.Null(StreamBytes.Read(good.AsSpan(borders[i]), null, null, cursor, header));
        }

        string text = StreamCursor.AtStart(header).ToString();
        Assert.Null(StreamCursor.TryParse(null));
        Assert.Null(StreamCursor.TryParse(text[2..]));
        Assert.Null(StreamCursor.TryParse("ff" + text[2..]));
        Assert.Null(StreamCursor.TryParse(new string('x', text.Length)));
    }

    [Fact]
    public void Runs_of_zeros_leave_the_data_and_come_back()
    {
        StreamHeader header = StreamBytes.Full(Units.MiB);
        var random = new SeededRandom(3);
        for (int round = 0; round < 50; round++)
        {
            var content = new byte[Units.MiB];
            for (int block = 0; block < 256; block++)
            {
                if (random.NextChance(round % 2 == 0 ? 0.5 : 0.95)) continue;
                random.Fill(content.AsSpan(block * Units.BlockBytes, Units.BlockBytes));
            }

            if (round < 10) content.AsSpan(random.NextBelow(1 << 20)).Clear();
            var output = new System.Buffers.ArrayBufferWriter<byte>();
            var encoder = new StreamEncoder(header, Lz4.Instance);
            BatchEncoder.Write(encoder, 0, content, output);
            output.Advance(encoder.End(output.GetSpan(128)));

            // Where they are written, with nothing to spare: the same frames.
            System.Buffers.ArrayBufferWriter<byte> apart = new(), within = new(StreamFrame.Size + content.Length);
            BatchEncoder.Write(new StreamEncoder(header), 0, content, apart);
            Span<byte> room = within.GetSpan(StreamFrame.Size + content.Length).Slice(StreamFrame.Size, content.Length);
            content.CopyTo(room);
            BatchEncoder.Write(new StreamEncoder(header), 0, room, within);
            Assert.Equal(apart.WrittenSpan, within.WrittenSpan);

            var back = new byte[Units.MiB];
            ulong end = 0;
            Assert.Null(StreamBytes.Read(output.WrittenSpan, Lz4.Instance, (frame, bytes) =>
            {
                Assert.Equal(end, frame.OffsetBytes);
                end = frame.EndBytes;
                if (frame.Kind == StreamKind.Data) bytes.CopyTo(back.AsSpan((int)frame.OffsetBytes));
            }, StreamCursor.AtStart(header), header));
            Assert.Equal(content, back);
        }
    }
}

using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>UNMAP, WRITE SAME, GET LBA STATUS and SANITIZE.</summary>
public class ProvisioningTests
{
    [Fact]
    public void Unmapped_blocks_read_as_zeros_and_become_holes()
    {
        var world = new ScsiWorld();
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 64), ScsiWorld.Fill(64 * 512, 7));
        // 3 to 20 (edges inside of physical blocks), 40 to 47 (one physical block), nothing at the very end.
        Unmap(world, (3, 18), (40, 8), (8192, 0));
        byte[] stored = world.Stored(0, 64 * 512);
        for (int block = 0; block < 64; block++)
            Assert.Equal(block is (>= 3 and < 21) or (>= 40 and < 48) ? 0 : 7, stored[block * 512]);
        string status = world.Good(world.A, "9E12" + ScsiWorld.U64(0) + "000000880000").Text;
        Assert.Equal("00000064" + "00000000" + Run(0, 8, 0) + Run(8, 8, 1) + Run(16, 24, 0) + Run(40, 8, 1) + Run(48, 16, 0)
            + Run(64, 8128, 1), status);
        Assert.Equal("00000014" + "00000000" + Run(8, 8, 1), world.Good(world.A, "9E12" + ScsiWorld.U64(3) + "000000180000").Text);
        Assert.Equal("00000014" + "00000000" + Run(8191, 1, 1), world.Good(world.A, "9E12" + ScsiWorld.U64(8191) + "000000180000").Text);
        world.Bad(world.A, "9E12" + ScsiWorld.U64(8192) + "000000180000", "05/21/00");
        world.Bad(world.A, "9E12" + ScsiWorld.U64(ulong.MaxValue) + "000000180000", "05/21/00");
        world.Bad(world.A, "9E12" + ScsiWorld.U64(0) + "000000170000", "05/24/00");
    }

    [Fact]
    public void Long_runs_take_several_descriptors()
    {
        var world = new ScsiWorld();
        var huge = new FullDevice(world.Device) { SizeBytes = 3UL << 40, Hole = true };
        world.Target.SetLun(0, new LogicalUnit(world.Loop, huge, new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        foreach (int code in new[] { 0x2900, 0x3F0E }) Assert.Equal(code, world.Send(world.A, "000000000000").Code);
        Assert.Equal("00000024" + "00000000" + Run(0, 0xFFFFFFF8, 1) + Run(0xFFFFFFF8, 0x80000008, 1),
            world.Good(world.A, "9E12" + ScsiWorld.U64(0) + "000001000000").Text);
        Assert.Equal("00000014" + "00000000" + Run(8, 0xFFFFFFF8, 1), world.Good(world.A, "9E12" + ScsiWorld.U64(8) + "0000001F0000").Text);
    }

    [Theory]
    [InlineData("0006" + "0000" + "00000000", null)] // no descriptors
    [InlineData("0016" + "0010" + "00000000" + "0000000000001FFF" + "00000001" + "00000000", null)]
    [InlineData("0016" + "0010" + "00000000" + "0000000000001FFF" + "00000002" + "00000000", "05/21/00")]
    [InlineData("0016" + "0010" + "00000000" + "FFFFFFFFFFFFFFFF" + "00000002" + "00000000", "05/21/00")]
    [InlineData("0016" + "0010" + "00000000" + "0000000000002001" + "00000000" + "00000000", "05/21/00")]
    [InlineData("0016" + "0010" + "00000000" + "0000000000000000" + "00000001", "05/1A/00")] // cut off
    [InlineData("0026" + "0020" + "00000000" + "0000000000000000" + "00000001" + "00000000", "05/1A/00")]
    [InlineData("0015" + "000F" + "00000000" + "0000000000000000" + "00000001" + "00000000", "05/26/00")]
    [InlineData("0008" + "0010" + "00000000" + "0000000000000000" + "00000001" + "00000000", "05/26/00")]
    [InlineData("0006", "05/1A/00")]
    public void Unmap_lists_are_checked(string list, string? sense)
    {
        var world = new ScsiWorld();
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 7));
        byte[] bytes = ScsiWorld.Hex(list);
        string cdb = $"42000000000000{bytes.Length:X4}00";
        if (sense is null) world.Good(world.A, cdb, bytes);
        else world.Bad(world.A, cdb, sense, bytes);
        Assert.Equal(ScsiWorld.Fill(4096, 7), world.Stored(0, 4096));
        world.Good(world.A, "42000000000000000000"); // no list at all
        world.Bad(world.A, "42010000000000000000", "05/24/00"); // ANCHOR
    }

    [Fact]
    public void Unmap_takes_256_descriptors_and_a_mebiblock()
    {
        var world = new ScsiWorld(sizeBytes: 2UL << 30);
        Unmap(world, [.. Enumerable.Range(0, 256).Select(i => ((ulong)i, 1u))]);
        byte[] list = UnmapList([.. Enumerable.Range(0, 257).Select(i => ((ulong)i, 1u))]);
        world.Bad(world.A, $"42000000000000{list.Length:X4}00", "05/26/00", list);
        Unmap(world, (5, 1u << 20));
        list = UnmapList((5, 1u << 20), (0, 1));
        Reply reply = world.Bad(world.A, $"42000000000000{list.Length:X4}00", "05/26/00", list);
        Assert.Equal("800020", Convert.ToHexString(reply.SenseBytes.AsSpan(15)));
        var thick = new ScsiWorld(o => o with { IsThin = false });
        thick.Bad(thick.A, $"42000000000000{list.Length:X4}00", "05/20/00", list);
    }

    [Fact]
    public void A_full_store_still_unmaps()
    {
        var world = new ScsiWorld();
        var full = new FullDevice(world.Device);
        world.Target.SetLun(0, new LogicalUnit(world.Loop, full, new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        foreach (int code in new[] { 0x2900, 0x3F0E }) Assert.Equal(code, world.Send(world.A, "000000000000").Code);
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 24), ScsiWorld.Fill(24 * 512, 7));
        full.IsFull = true;
        Unmap(world, (4, 16));
        byte[] stored = world.Stored(0, 24 * 512);
        for (int block = 0; block < 24; block++) Assert.Equal(block is >= 8 and < 16 ? 0 : 7, stored[block * 512]); // whole ones only
        world.Bad(world.A, ScsiWorld.Cdb16(0x93, 4, 16, 0x09), "07/27/07"); // WRITE SAME promises zeros: it fails instead
    }

    [Theory]
    [InlineData(0x41, 512)]
    [InlineData(0x93, 512)]
    [InlineData(0x93, 4096)]
    public void Write_same_repeats_one_block(byte opcode, int block)
    {
        var world = new ScsiWorld(o => o with { BlockBytes = block }, 16 << 20);
        var data = new byte[block];
        world.Loop.Random.Fill(data);
        ulong blocks = 3 * (1 << 20) / (ulong)block + 1;
        string Cdb(byte flags, ulong count) => opcode == 0x41 ? ScsiWorld.Cdb10(opcode, 3, count, flags) : ScsiWorld.Cdb16(opcode, 3, count, flags);
        Assert.Equal(block, world.Good(world.A, Cdb(0, blocks), data).Plan.OutBytes);
        byte[] stored = world.Stored(0, (int)(blocks + 4) * block);
        for (int i = 0; i < (int)blocks + 4; i++)
            Assert.True(stored.AsSpan(i * block, block).SequenceEqual(i >= 3 && i < 3 + (int)blocks ? data : new byte[block]));
        world.Bad(world.A, Cdb(0x10, 1), "05/24/00", data); // ANCHOR alone
        world.Bad(world.A, Cdb(0x18, 1), "05/24/00", data); // ANCHOR is not offered
        world.Good(world.A, Cdb(0x08, blocks), data); // UNMAP of what is not zero writes it
        Assert.Equal(stored, world.Stored(0, stored.Length));
        world.Good(world.A, Cdb(0x08, blocks), new byte[block]);
        Assert.Equal(new byte[stored.Length], world.Stored(0, stored.Length));
        world.Bad(world.A, Cdb(0, 1), "05/0E/03", data[..(block / 2)]);
        world.Bad(world.A, Cdb(0, 1), "05/0E/03", [.. data, .. data]);
        world.Bad(world.A, Cdb(0, 0), "05/24/00", data);
    }

    [Fact]
    public void Write_same_needs_no_data_for_zeros()
    {
        var world = new ScsiWorld();
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 16), ScsiWorld.Fill(8192, 7));
        Assert.Equal(0, world.Good(world.A, ScsiWorld.Cdb16(0x93, 0, 8, 0x01)).Plan.OutBytes); // NDOB
        Assert.Equal(new byte[4096], world.Stored(0, 4096));
        world.Good(world.A, ScsiWorld.Cdb16(0x93, 9, 7, 0x08)); // UNMAP, nothing offered
        Assert.Equal(ScsiWorld.Fill(512, 7), world.Stored(4096, 512));
        Assert.Equal(new byte[7 * 512], world.Stored(9 * 512, 7 * 512));
        world.Bad(world.A, ScsiWorld.Cdb16(0x93, 0, 1), "05/0E/03");
        var thick = new ScsiWorld(o => o with { IsThin = false });
        thick.Bad(thick.A, ScsiWorld.Cdb16(0x93, 0, 8, 0x08), "05/24/00", new byte[512]);
        thick.Good(thick.A, ScsiWorld.Cdb16(0x93, 0, 8), new byte[512]);
        Assert.Equal(WriteFlags.NoHole, thick.Device.LastFlags);
    }

    [Fact]
    public void Block_erase_leaves_nothing_and_can_be_watched()
    {
        var world = new ScsiWorld(sizeBytes: 256 << 20, isSlow: true);
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 7));
        world.Device.IsStuck = true;
        Reply erase = world.Begin(world.A, "48020000000000000000");
        world.Loop.RunUntil(() => world.Device.InFlight > 0);
        world.Bad(world.B, "000000000000", "02/04/1B");
        world.Bad(world.B, ScsiWorld.Cdb16(0x88, 0, 1), "02/04/1B");
        world.Bad(world.B, "1B0100000300", "02/04/1B");
        world.Bad(world.B, "48020000000000000000", "02/04/1B");
        Assert.Equal(ScsiStatus.Good, world.Send(world.B, "12000000FF00").Status);
        Assert.Equal("70000200000000" + "0A00000000" + "041B" + "00" + "800000", world.Send(world.B, "030000001200").Text);
        // Neither abort nor reset nor the end of the session stops it.
        Task<TaskFunctionResponse> reset = world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0).AsTask();
        Assert.True(reset.IsCompleted && erase.IsDone && !erase.IsAnswered);
        world.Target.RemoveNexus(world.A);
        world.Bad(world.B, "000000000000", "06/29/03");
        world.Bad(world.B, "000000000000", "02/04/1B");
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => !world.Unit.IsSanitizing));
        world.Good(world.B, "000000000000");
        Assert.Equal("00000014" + "00000000" + Run(0, 524288, 1), world.Good(world.B, "9E12" + ScsiWorld.U64(0) + "000001000000").Text);
        Assert.Equal(new byte[4096], world.Good(world.B, ScsiWorld.Cdb16(0x88, 0, 8)).Data);
    }

    [Theory]
    [InlineData("01", 512, 0)]
    [InlineData("01", 256, 0)]
    [InlineData("01", 4, 0)]
    [InlineData("82", 512, 0xFF)] // two passes, the second inverted
    public void Overwrite_repeats_the_pattern_in_every_block(string head, int length, byte inverted)
    {
        var world = new ScsiWorld();
        var pattern = new byte[length];
        world.Loop.Random.Fill(pattern);
        byte[] list = [.. ScsiWorld.Hex(head + "00" + $"{length:X4}"), .. pattern];
        ulong before = world.Loop.NowNanos;
        world.Good(world.A, $"48010000000000{list.Length:X4}00", list);
        Assert.True(world.Loop.NowNanos - before >= 6_000_000_000);
        byte[] stored = world.Stored(0, 4 << 20);
        for (int i = 0; i < stored.Length; i++) Assert.True(stored[i] == (byte)(pattern[i % 512 % length] ^ inverted));
        Assert.Equal(1, world.Device.Flushes);
    }

    [Fact]
    public void Sanitize_fields_are_checked()
    {
        var world = new ScsiWorld();
        byte[] list = [.. ScsiWorld.Hex("01000200"), .. new byte[512]];
        for (int length = 0; length < 5; length++) world.Bad(world.A, $"48010000000000{length:X4}00", "05/24/00", list[..length]);
        world.Bad(world.A, $"48010000000000{517:X4}00", "05/24/00", new byte[520]);
        world.Bad(world.A, "48010000000000020400", "05/26/00", [0, .. list[1..]]); // no pass
        world.Bad(world.A, "48010000000000020400", "05/26/00", [1, 0, 0, 0, .. list[4..]]); // no pattern
        world.Bad(world.A, "48010000000000020400", "05/26/00", [1, 0, 2, 4, .. list[4..]]); // pattern beyond the list
        world.Bad(world.A, "48010000000000020400", "05/1A/00", list[..100]);
        world.Bad(world.A, "48410000000000020400", "05/24/00", list); // reserved bit
        for (int at = 2; at < 7; at++)
        {
            byte[] cdb = ScsiWorld.Hex("48020000000000000000");
            cdb[at] = 1;
            Reply reply = world.Bad(world.A, Convert.ToHexString(cdb), "05/24/00");
            Assert.Equal($"C0{at:X4}", Convert.ToHexString(reply.SenseBytes.AsSpan(15)));
        }

        world.Bad(world.A, "48020000000000000800", "05/24/00", new byte[8]);
        world.Bad(world.A, "481F0000000000000800", "05/24/00", new byte[8]);
        world.Good(world.A, "481F0000000000000000");
        for (int action = 0; action < 0x1F; action++)
        {
            if (action is not (1 or 2)) world.Bad(world.A, $"48{action:X2}0000000000000000", "05/24/00");
        }

        var thick = new ScsiWorld(o => o with { IsThin = false });
        thick.Bad(thick.A, "48020000000000000000", "05/24/00");
        var none = new ScsiWorld(o => o with { HasSanitize = false });
        none.Bad(none.A, "48020000000000000000", "05/20/00");
    }

    [Fact]
    public void A_failed_sanitize_closes_the_unit_until_it_is_left_or_repeated()
    {
        var world = new ScsiWorld();
        world.Device.Fails = IoStatus.IoError;
        world.Bad(world.A, "48020000000000000000", "03/31/03");
        world.Device.Fails = null;
        world.Bad(world.A, ScsiWorld.Cdb16(0x88, 0, 1), "03/31/03");
        world.Bad(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), "03/31/03", new byte[512]);
        world.Bad(world.A, "481F0000000000000000", "05/24/00"); // AUSE was not set
        world.Good(world.A, "48020000000000000000");
        world.Good(world.A, ScsiWorld.Cdb16(0x88, 0, 1));
        world.Device.Fails = IoStatus.IoError;
        world.Bad(world.A, "48220000000000000000", "03/31/03"); // AUSE
        world.Device.Fails = null;
        world.Good(world.A, "481F0000000000000000");
        world.Good(world.A, ScsiWorld.Cdb16(0x88, 0, 1));
        world.Good(world.A, "48820000000000000000"); // IMMED
        Assert.True(world.Unit.IsSanitizing);
        Assert.True(world.Loop.RunUntil(() => !world.Unit.IsSanitizing));
    }

    private static string Run(ulong lba, ulong blocks, int state) => ScsiWorld.U64(lba) + ScsiWorld.U32(blocks) + $"{state:X2}000000";

    private static void Unmap(ScsiWorld world, params (ulong Lba, uint Blocks)[] descriptors)
    {
        byte[] list = UnmapList(descriptors);
        world.Good(world.A, $"42000000000000{list.Length:X4}00", list);
    }

    private static byte[] UnmapList(params (ulong Lba, uint Blocks)[] descriptors)
    {
        int length = 16 * descriptors.Length;
        string text = $"{length + 6:X4}{length:X4}00000000";
        foreach ((ulong lba, uint blocks) in descriptors) text += ScsiWorld.U64(lba) + ScsiWorld.U32(blocks) + "00000000";
        return ScsiWorld.Hex(text);
    }

    /// <summary>When full it takes nothing, zeros of partial blocks included, but gives back.</summary>
    private sealed class FullDevice(IBlockDevice inner) : IBlockDevice
    {
        public bool IsFull { get; set; }

        public ulong SizeBytes { get; init; } = inner.SizeBytes;

        /// <summary>Says that all of it is one hole.</summary>
        public bool Hole { get; init; }

        public bool IsReadOnly => false;

        public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => inner.ReadAsync(offsetBytes, target);

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) =>
            IsFull ? new(IoStatus.NoSpace) : inner.WriteAsync(offsetBytes, source, flags);

        public ValueTask<IoStatus> FlushAsync() => inner.FlushAsync();

        public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
            inner.TrimAsync(offsetBytes, lengthBytes, flags);

        public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
            IsFull ? new(IoStatus.NoSpace) : inner.WriteZeroesAsync(offsetBytes, lengthBytes, flags);

        public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => inner.PrefetchAsync(offsetBytes, lengthBytes);

        public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs)
        {
            if (!Hole) return inner.MapAsync(offsetBytes, lengthBytes, runsMax, runs);
            runs.Clear();
            runs.Add(new MapRun(lengthBytes, true));
            return new(IoStatus.Ok);
        }
    }
}

using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.Scsi.ScsiWorld;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>EXTENDED COPY between units of which one, the other or both are of other loops than their target, asked for at either.</summary>
public sealed class FarCopyTests
{
    private const ulong Lun1 = 1UL << 48;
    private const int Length = 6 << 20;

    private static readonly (bool IsFirstFar, bool IsSecondFar, ulong Asked)[] s_places =
        [(false, true, 0), (false, true, Lun1), (true, false, 0), (true, false, Lun1), (true, true, 0), (true, true, Lun1)];

    /// <summary>Which of the two units are far, and which of them is asked for the copy.</summary>
    public static TheoryData<bool, bool, ulong> Places => [.. s_places];

    [Theory]
    [MemberData(nameof(Places))]
    public void A_copy_goes_both_ways_and_gives_everything_back(bool isFirstFar, bool isSecondFar, ulong asked)
    {
        Pair pair = Make(isFirstFar, isSecondFar);
        byte[] data = pair.Fill(pair.World.Device, 4096, Length - 4096);
        byte[] there = pair.List(1, Segment(0, 1, 8, 100, Length - 4096));
        pair.Good(there, asked);
        Assert.Equal(data, Stored(pair, pair.Other, 100 * 512, data.Length));
        Assert.Equal(new byte[512], Stored(pair, pair.Other, 99 * 512, 512));
        string status = pair.World.Send(pair.World.A, "84000100000000000000000001000000", lun: asked).Text;
        Assert.Equal("00000008" + "01" + "0001" + "00" + U32(Length - 4096), status);

        byte[] back = pair.List(2, Segment(1, 0, 100, 9, 512 * 5), Segment(1, 0, 99, 9, 512)); // the last segment wins
        pair.Good(back, asked);
        Assert.Equal([.. new byte[512], .. data[512..(512 * 5)]], Stored(pair, pair.World.Device, 9 * 512, 512 * 5));
        pair.IsIdle();
    }

    [Theory]
    [MemberData(nameof(Places))]
    public void Overlapping_ranges_and_holes_are_copied_as_they_are_near(bool isFirstFar, bool isSecondFar, ulong asked)
    {
        Pair pair = Make(isFirstFar, isSecondFar);
        byte[] data = pair.Fill(pair.Other, 0, 3 << 20);
        pair.Good(pair.List(0, Segment(1, 1, 0, 7, 3 << 20)), asked);
        Assert.Equal(data, Stored(pair, pair.Other, 7 * 512, data.Length));
        pair.Good(pair.List(0, Segment(0, 1, 0, 0, 4 << 20)), asked); // nothing was ever written there
        var runs = new List<MapRun>();
        Assert.Equal(IoStatus.Ok, pair.World.Loop.Run(pair.Other.MapAsync(0, 4 << 20, 8, runs)));
        Assert.Equal([new MapRun(4 << 20, true)], runs);
        pair.IsIdle();
    }

    /// <summary>CVE-2020-28374: the designator of a unit that the initiator may not use leads nowhere, on whichever loop it is.</summary>
    [Theory]
    [InlineData(false, true)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    public void A_copy_reaches_no_foreign_unit(bool isFirstFar, bool isSecondFar)
    {
        Pair pair = Make(isFirstFar, isSecondFar, hidesSecondFrom: "iqn.2024-01.test:b");
        byte[] secret = pair.Fill(pair.Other, 0, 4096);
        byte[] own = pair.Fill(pair.World.Device, 0, 4096);
        foreach (string segment in new[] { Segment(0, 1, 0, 0, 4096), Segment(1, 0, 0, 0, 4096), Segment(1, 1, 0, 8, 4096) })
        {
            byte[] list = pair.List(1, segment);
            pair.World.Bad(pair.World.B, Cdb(list), "0A/0D/02", list);
            Assert.Equal(secret, Stored(pair, pair.Other, 0, 4096));
            Assert.Equal(own, Stored(pair, pair.World.Device, 0, 4096));
        }

        Assert.Equal(new byte[4096], Stored(pair, pair.Other, 4096, 4096));
        pair.Good(pair.List(1, Segment(0, 1, 0, 0, 4096)), Lun1); // A may
        Assert.Equal(own, Stored(pair, pair.Other, 0, 4096));
        pair.IsIdle();
    }

    [Theory]
    [MemberData(nameof(Places))]
    public void Faults_of_either_end_are_told(bool isFirstFar, bool isSecondFar, ulong asked)
    {
        Pair pair = Make(isFirstFar, isSecondFar);
        pair.Fill(pair.World.Device, 0, 4096);
        byte[] list = pair.List(3, Segment(0, 1, 0, 0, 4096));
        pair.Bad(pair.List(1, Segment(0, 1, 0, 1 << 30, 512)), asked, "0A/0D/02");
        pair.Bad(pair.List(1, Segment(0, 1, 16 << 11, 0, 512)), asked, "0A/0D/02");
        pair.Other.Fails = IoStatus.NoSpace;
        pair.Bad(list, asked, "07/27/07");
        pair.Other.Fails = null;
        pair.World.Device.Fails = IoStatus.IoError;
        pair.Bad(list, asked, "0A/0D/01");
        pair.World.Device.Fails = null;
        Assert.Equal(ScsiStatus.Good, pair.World.Send(pair.World.B, "160000000000", lun: Lun1).Status); // RESERVE (6)
        if (asked == 0) pair.Bad(list, asked, "0A/0D/02");
        else Assert.Equal(ScsiStatus.ReservationConflict, pair.Send(list, asked).Status);
        Assert.Equal(ScsiStatus.Good, pair.World.Send(pair.World.B, "170000000000", lun: Lun1).Status);
        pair.Good(list, asked);
        pair.World.Target.SetLun(1, pair.Second, isReadOnly: true);
        pair.TakeAttentions();
        pair.Bad(list, asked, "07/27/00");
        pair.IsIdle();
    }

    /// <summary>What ends the tasks of the nexus in the unit that was asked, or in either unit that is copied, ends the copy. It is
    /// answered when no piece is under way any more.</summary>
    [Theory]
    [InlineData(TaskFunction.AbortTask, true)]
    [InlineData(TaskFunction.AbortTaskSet, true)]
    [InlineData(TaskFunction.LogicalUnitReset, true)]
    [InlineData(TaskFunction.TargetWarmReset, true)]
    [InlineData(TaskFunction.AbortTaskSet, false)]
    [InlineData(TaskFunction.ClearTaskSet, false)]
    [InlineData(TaskFunction.LogicalUnitReset, false)]
    public void Task_management_ends_a_copy(TaskFunction function, bool isAtAsked)
    {
        foreach ((bool isFirstFar, bool isSecondFar, ulong asked) in s_places)
        {
            Pair pair = Make(isFirstFar, isSecondFar, isSlow: true);
            pair.Fill(pair.World.Device, 0, Length);
            Reply copy = pair.Begin(pair.List(1, Segment(0, 1, 0, 0, Length)), asked);
            Assert.True(pair.World.Loop.RunUntil(() => pair.Other.InFlight > 0)); // a piece is on its way
            ulong at = isAtAsked ? asked : Lun1 - asked;
            Task<TaskFunctionResponse> managed = pair.World.Target.ManageAsync(pair.World.A, function, at, copy.Command.Tag).AsTask();
            Assert.True(pair.World.Loop.RunUntil(() => managed.IsCompleted));
            Assert.Equal(TaskFunctionResponse.Complete, managed.Result);
            Assert.Equal(0, pair.Other.InFlight);
            byte[] after = Stored(pair, pair.Other, 0, Length);
            Assert.True(pair.World.Loop.RunUntil(() => copy.IsDone) || copy.IsDone);
            if (isAtAsked) Assert.False(copy.IsAnswered);
            else Assert.Equal("0A/0D/01", copy.Sense);
            Assert.Equal(new byte[512], after[^512..]);
            Assert.Equal(after, Stored(pair, pair.Other, 0, Length)); // and nothing came later
            pair.IsIdle();
        }
    }

    [Theory]
    [MemberData(nameof(Places))]
    public void A_session_that_ends_takes_its_copies_along(bool isFirstFar, bool isSecondFar, ulong asked)
    {
        Pair pair = Make(isFirstFar, isSecondFar, isSlow: true);
        pair.Fill(pair.World.Device, 0, Length);
        Reply[] copies = [.. Enumerable.Range(1, 4).Select(i => pair.Begin(pair.List((byte)i, Segment(0, 1, 0, 0, Length)), asked))];
        Assert.True(pair.World.Loop.RunUntil(() => pair.Other.InFlight > 0));
        pair.World.Target.RemoveNexus(pair.World.A);
        Assert.True(pair.World.Loop.RunUntil(() => copies.All(c => c.IsDone)));
        Assert.All(copies, c => Assert.False(c.IsAnswered));
        Assert.Equal(new byte[512], Stored(pair, pair.Other, Length - 512, 512));
        Reply write = pair.World.Send(pair.World.B, Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 7), Lun1); // nothing is held
        Assert.Equal(ScsiStatus.Good, write.Status);
        pair.IsIdle();
    }

    /// <summary>A LUN that is taken away, and a reservation that excludes the nexus, hold for the next piece already.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void What_a_nexus_may_do_is_asked_for_every_piece(bool isTaken)
    {
        foreach ((bool isFirstFar, bool isSecondFar, _) in s_places)
        {
            Pair pair = Make(isFirstFar, isSecondFar, isSlow: true);
            pair.Fill(pair.World.Device, 0, Length);
            Reply copy = pair.Begin(pair.List(1, Segment(0, 1, 0, 0, Length)), 0);
            Assert.True(pair.World.Loop.RunUntil(() => pair.Other.InFlight > 0));
            if (isTaken)
            {
                pair.World.Target.SetLun(1, null);
            }
            else
            {
                Reply reserved = pair.World.Send(pair.World.B, "160000000000", lun: Lun1);
                Assert.Equal(ScsiStatus.Good, reserved.Status);
                Assert.Equal(0, pair.Other.InFlight); // it was answered when nothing was under way
            }

            Assert.True(pair.World.Loop.RunUntil(() => copy.IsDone) || copy.IsDone);
            Assert.Equal("0A/0D/02", copy.Sense);
            Assert.Equal(new byte[512], Stored(pair, pair.Other, Length - 512, 512));
            pair.IsIdle();
        }
    }

    /// <summary>Copies that cross each other wait for nothing that waits for them.</summary>
    [Theory]
    [MemberData(nameof(Places))]
    public void Crossing_copies_all_end(bool isFirstFar, bool isSecondFar, ulong asked)
    {
        Pair pair = Make(isFirstFar, isSecondFar, isSlow: true);
        Reply[] copies =
        [
            .. Enumerable.Range(1, 4).Select(i => pair.Begin(
                pair.List((byte)i, Segment(i & 1, 1 - (i & 1), 0, 0, 2 << 20), Segment(1 - (i & 1), i & 1, 8, 0, 2 << 20)),
                i > 2 ? asked : Lun1 - asked, i == 3 ? TaskAttribute.Ordered : TaskAttribute.Simple)),
        ];
        Reply[] writes = [.. Enumerable.Range(0, 8).Select(i => pair.World.Begin(pair.World.B, Cdb16(0x8A, (ulong)i, 8), ScsiWorld.Fill(4096, 1), i % 2 == 0 ? 0 : Lun1, TaskAttribute.Ordered))];
        Assert.True(pair.World.Loop.RunUntil(() => copies.Concat(writes).All(c => c.IsDone)));
        Assert.All(copies.Concat(writes), c => Assert.Equal(ScsiStatus.Good, c.Status));
        pair.IsIdle();
    }

    [Fact]
    public void A_bug_of_a_far_end_is_thrown_here_and_nothing_is_kept()
    {
        Pair pair = Make(false, true);
        pair.Fill(pair.World.Device, 0, 4096);
        byte[] list = pair.List(1, Segment(0, 1, 0, 0, 4096));
        pair.Other.IsBroken = true;
        var command = new ScsiCommand { Nexus = pair.World.A, Tag = 9999, OutLength = list.Length, OutBuffer = pair.World.Loop.Buffers.TryRent(list.Length) };
        Hex(Cdb(list)).CopyTo(command.Cdb, 0);
        list.CopyTo(command.OutBuffer!.Data);
        Exception bug = Assert.ThrowsAny<Exception>(() => pair.World.Loop.Run(pair.World.Target.ExecuteAsync(command)));
        Assert.Contains("broken on purpose", bug.Message, StringComparison.Ordinal);
        command.OutBuffer.Return();
        pair.Other.IsBroken = false;
        pair.IsIdle();
    }

    private static Pair Make(bool isFirstFar, bool isSecondFar, bool isSlow = false, string? hidesSecondFrom = null)
    {
        var world = new ScsiWorld(
            sizeBytes: 16 << 20, isSlow: isSlow, isFar: isFirstFar, mayUse: (nexus, lun) => lun == 0 || nexus.InitiatorName != hidesSecondFrom);
        ILoop loop = isSecondFar ? new SideLoop(world.Loop, 1000) : world.Loop;
        var other = new MemoryDevice(16 << 20, isSlow ? world.Loop : null);
        var second = new LogicalUnit(loop, other, new LogicalUnitOptions { Uuid = new Guid("aa112233-4455-4677-8899-aabbccddeeff") });
        world.Target.SetLun(1, second);
        var pair = new Pair(world, loop, other, second);
        pair.TakeAttentions();
        return pair;
    }

    private static byte[] Stored(Pair pair, MemoryDevice device, ulong offset, int length)
    {
        var data = new byte[length];
        Assert.Equal(IoStatus.Ok, pair.World.Loop.Run(device.ReadAsync(offset, data)).Status);
        return data;
    }

    private static string Cdb(byte[] list) => $"83000000000000000000{list.Length:X8}0000";

    /// <summary>A segment with a length in bytes.</summary>
    private static string Segment(int source, int target, ulong from, ulong to, int bytes) =>
        $"0A00001C{source:X4}{target:X4}" + U32((ulong)bytes) + U64(from) + U64(to) + "00000000";

    /// <summary>LUN 0 and LUN 1.</summary>
    private sealed class Pair(ScsiWorld world, ILoop secondLoop, MemoryDevice other, LogicalUnit second)
    {
        private readonly Dictionary<int, byte[]> _targets = [];

        public ScsiWorld World => world;

        public MemoryDevice Other => other;

        public LogicalUnit Second => second;

        public void TakeAttentions()
        {
            foreach (ScsiNexus nexus in new[] { world.A, world.B })
            {
                for (ulong lun = 0; lun <= Lun1; lun += Lun1)
                {
                    while (world.Send(nexus, "000000000000", lun: lun) is { Sense: "06/29/00" or "06/3F/0E" or "06/2A/01" })
                    {
                    }
                }
            }
        }

        public byte[] Fill(MemoryDevice device, ulong offset, int length)
        {
            var data = new byte[length];
            world.Loop.Random.Fill(data);
            Assert.Equal(IoStatus.Ok, world.Loop.Run(device.WriteAsync(offset, data, WriteFlags.None)));
            return data;
        }

        public Reply Begin(byte[] list, ulong lun, TaskAttribute attribute = TaskAttribute.Simple) =>
            world.Begin(world.A, Cdb(list), list, lun, attribute);

        public Reply Send(byte[] list, ulong lun) => world.Send(world.A, Cdb(list), list, lun);

        public void Good(byte[] list, ulong lun) => Assert.Equal("Good", Send(list, lun).Sense);

        public void Bad(byte[] list, ulong lun, string sense) => Assert.Equal(sense, Send(list, lun).Sense);

        public byte[] List(byte id, params string[] segments)
        {
            byte[] targets = [.. TargetOf(0), .. TargetOf(1)], all = Hex(string.Concat(segments));
            return [.. Hex($"{id:X2}00{targets.Length:X4}00000000{all.Length:X8}00000000"), .. targets, .. all];
        }

        public void IsIdle()
        {
            world.Loop.RunUntil(() => world.Unit.TaskCount + second.TaskCount == 0);
            Assert.Equal((0, 0), (world.Unit.TaskCount, second.TaskCount));
            Assert.Equal((0, 0, 0), (world.Loop.Buffers.LentCount, world.UnitLoop.Buffers.LentCount, secondLoop.Buffers.LentCount));
            Assert.Equal((0, 0), (world.Unit.WorkLentCount, second.WorkLentCount));
        }

        private byte[] TargetOf(int lun)
        {
            if (_targets.TryGetValue(lun, out byte[]? known)) return known;
            byte[] page = world.Send(world.A, "120183010000", lun: (ulong)lun << 48).Data;
            var target = new byte[32];
            target[0] = 0xE4;
            page.AsSpan(4, 4 + page[7]).CopyTo(target.AsSpan(4));
            return _targets[lun] = target;
        }
    }
}

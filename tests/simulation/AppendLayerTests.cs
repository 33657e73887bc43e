using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Appends that meet a rollback or a cut on their way, at every event.</summary>
public sealed class AppendLayerTests
{
    private const uint Volume = 3;
    private const ulong EventsMax = 1_000_000;
    private static readonly VolumeHead s_head = new(Volume, new Guid(1, 2, 3, new byte[8]), "log", 8 * Units.MiB, 1) { IsAppendOnly = true };
    private static readonly StoreOptions s_options = new() { RingBytes = 512 << 10, SlotFraction = 0.04 };

    /// <summary>A large append is written in pieces behind the length. When the volume goes back to a longer branch meanwhile, no piece
    /// may come to lie in what it holds then.</summary>
    [Fact]
    public void A_rollback_under_a_large_append_leaves_what_the_snapshot_holds()
    {
        byte[] first = Bytes(1, 100_000), branch = Bytes(2, (2 << 20) + 1234), large = Bytes(3, (3 << 20) + 77);
        int undone = 0;
        for (ulong wait = 0; wait < 60; wait++)
        {
            var loop = new SimLoop(wait + 1);
            var disk = new SimDisk(loop, 40 * Units.MiB, 1);
            var store = (ILayeredStore)Open(loop, disk, isNew: true);
            var appends = (IAppendStore)store;
            Append(loop, store, first);
            Cut(loop, store, 1);
            Append(loop, store, branch);
            Assert.Equal(IoStatus.Ok, loop.Run(store.RollBackAsync(Id(1), Request(2))));
            Task<AppendResult> appending = appends.AppendAsync(Volume, default, large).AsTask();
            ulong at = loop.EventCount + wait;
            loop.RunUntil(() => loop.EventCount >= at || appending.IsCompleted, EventsMax);
            Task<IoStatus> going = store.RollBackAsync(Id(2), Request(3)).AsTask();
            loop.RunUntil(() => appending.IsCompleted && going.IsCompleted, EventsMax);
            Assert.Equal(IoStatus.Ok, going.Result);
            Assert.Equal(AppendOutcome.Done, appending.Result.Outcome);
            byte[] found = Read(loop, store.OpenVolume(Volume)!, appends.AppendInfoOf(Volume)!.Value.LengthBytes);
            byte[] kept = [.. first, .. branch];
            bool isUndone = appending.Result.OffsetBytes == (ulong)first.Length;
            if (isUndone) undone++;
            Assert.True(found.AsSpan().SequenceEqual(isUndone ? kept : [.. kept, .. large]), $"after {wait} events: {found.Length} bytes, equal up to {found.AsSpan().CommonPrefixLength(kept)}");
        }

        Assert.True(undone < 60);
    }

    /// <summary>A snapshot is cut over an append that is in the log and not durable. Where a power cut takes the append and leaves the
    /// snapshot, it holds what the volume holds, and no zeros in its place.</summary>
    [Fact]
    public void A_snapshot_that_nobody_was_answered_holds_no_append_that_a_power_cut_took()
    {
        int states = 0, kept = 0;
        for (ulong seed = 1; seed <= 30; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 24 * Units.MiB, seed);
            var dice = new SeededRandom(seed);
            var store = (ILayeredStore)Open(loop, disk, isNew: true);
            byte[] first = Bytes(1, 5000), second = Bytes(2, 9000), all = [.. first, .. second];
            Append(loop, store, first);
            ulong seen = disk.ChangeCount;
            string? fault = null;
            loop.StopBeforeEvent = _ =>
            {
                if (fault is not null || disk.ChangeCount == seen) return false;
                seen = disk.ChangeCount;
                for (int draw = 0; draw < 12; draw++)
                {
                    ulong mask = dice.NextUInt64();
                    var world = new SimLoop(dice.NextUInt64());
                    SimDisk fork = disk.ForkAfterPowerCut(world, dice.NextUInt64(), (write, _) => (mask >> (write % 64) & 1) != 0 ? byte.MaxValue : (byte)0);
                    var there = (ILayeredStore)Open(world, fork, isNew: false);
                    states++;
                    fault ??= FaultOf(world, there, all, ref kept);
                }

                return false;
            };
            ulong delay = dice.NextBelow(12UL);
            Task<AppendResult> appending = ((IAppendStore)store).AppendAsync(Volume, default, second).AsTask();
            ulong at = loop.EventCount + delay;
            loop.RunUntil(() => loop.EventCount >= at, EventsMax);
            Task<IoStatus> cutting = store.CreateSnapshotsAsync([Request(1)]).AsTask();
            loop.RunUntil(() => appending.IsCompleted && cutting.IsCompleted, EventsMax);
            Assert.True(fault is null, $"seed {seed}: {fault}");
        }

        Assert.True(states > 500 && kept > 0, $"{states} states, {kept} with the snapshot");
    }

    /// <summary>
    /// CutUnderWrites (B1.10). An append is in the log when the volume goes back: it is answered, and what the volume was is kept with it.
    /// Cut under it the safety snapshot has its blocks and not its length: acknowledged, durable, and nowhere.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.CutUnderWrites)]
    [InlineData(BrokenRules.None)]
    public void A_rollback_under_an_append_keeps_it_or_has_it_land_afterwards(BrokenRules broken)
    {
        byte[] first = Bytes(1, 5000), branch = Bytes(2, 3000), last = Bytes(3, 9000);
        int kept = 0, after = 0, lost = 0;
        for (ulong wait = 0; wait < 12; wait++)
        {
            var loop = new SimLoop(wait + 1);
            var disk = new SimDisk(loop, 24 * Units.MiB, 1);
            var store = (ILayeredStore)Open(loop, disk, isNew: true, broken);
            var appends = (IAppendStore)store;
            Append(loop, store, first);
            Cut(loop, store, 1);
            Append(loop, store, branch);
            Task<AppendResult> appending = appends.AppendAsync(Volume, default, last).AsTask();
            ulong at = loop.EventCount + wait;
            loop.RunUntil(() => loop.EventCount >= at, EventsMax);
            Task<IoStatus> going = store.RollBackAsync(Id(1), Request(2)).AsTask();
            loop.RunUntil(() => appending.IsCompleted && going.IsCompleted, EventsMax);
            Assert.Equal((IoStatus.Ok, AppendOutcome.Done), (going.Result, appending.Result.Outcome));
            SnapshotInfo safety = store.Snapshots(Volume).Single(s => s.Uuid == Id(2));
            bool isAfter = appending.Result.OffsetBytes == (ulong)first.Length;
            byte[] wanted = isAfter ? [.. first, .. last] : [.. first, .. branch, .. last];
            IBlockDevice device = isAfter ? store.OpenVolume(Volume)! : store.OpenSnapshot(Volume, Id(2))!;
            ulong length = isAfter ? appends.AppendInfoOf(Volume)!.Value.LengthBytes : safety.LengthBytes!.Value;
            if (isAfter) after++;
            else if (Read(loop, device, length).AsSpan().SequenceEqual(wanted)) kept++;
            else lost++;
        }

        if (broken == BrokenRules.None) Assert.True(kept > 0 && lost == 0, $"{kept} kept, {after} landed afterwards, {lost} lost");
        else Assert.True(lost > 0, $"{kept} kept, {after} landed afterwards");
    }

    /// <summary>The pieces of a large append lie behind the length before it is said. A snapshot that is cut in between shares them with the
    /// next one and shows none of them: what was changed since it has them all the same, or an increment would lack them.</summary>
    [Fact]
    public void What_was_changed_since_a_snapshot_and_its_depth_have_the_pieces_that_lay_behind_its_end()
    {
        byte[] first = Bytes(1, 100_000), large = Bytes(3, (3 << 20) + 77), all = [.. first, .. large];
        int between = 0;
        for (ulong wait = 0; wait < 40; wait++)
        {
            var loop = new SimLoop(wait + 1);
            var disk = new SimDisk(loop, 40 * Units.MiB, 1);
            var store = (ILayeredStore)Open(loop, disk, isNew: true);
            var appends = (IAppendStore)store;
            Append(loop, store, first);
            Task<AppendResult> appending = appends.AppendAsync(Volume, default, large).AsTask();
            ulong at = loop.EventCount + wait;
            loop.RunUntil(() => loop.EventCount >= at || appending.IsCompleted, EventsMax);
            if (!appending.IsCompleted) between++;
            Cut(loop, store, 1);
            loop.RunUntil(() => appending.IsCompleted, EventsMax);
            Assert.Equal(AppendOutcome.Done, appending.Result.Outcome);
            Cut(loop, store, 2);
            foreach (Guid? newer in new Guid?[] { Id(2), null })
            {
                byte[] content = Read(loop, store.OpenSnapshot(Volume, Id(1))!, store.Snapshots(Volume)[0].SizeBytes);
                byte[] wanted = Read(loop, store.OpenSnapshot(Volume, Id(2))!, store.Snapshots(Volume)[1].SizeBytes);
                Array.Resize(ref content, wanted.Length);
                var runs = new List<DiffRun>();
                Assert.Equal(IoStatus.Ok, loop.Run(store.DiffAsync(Volume, Id(1), newer, 0, (ulong)wanted.Length, 1000, runs)));
                int offset = 0;
                foreach (DiffRun run in runs)
                {
                    if (run.IsChanged) wanted.AsSpan(offset, (int)run.LengthBytes).CopyTo(content.AsSpan(offset));
                    offset += (int)run.LengthBytes;
                }

                Assert.True(content.AsSpan().SequenceEqual(wanted), $"after {wait} events: equal up to byte {content.AsSpan().CommonPrefixLength(wanted)}");
                Assert.True(wanted.AsSpan(0, all.Length).SequenceEqual(all));
            }

            // A clone of the second counts one layer more.
            Assert.Equal(IoStatus.Ok, loop.Run(store.CreateCloneAsync(new VolumeHead(9, new Guid(9, 2, 3, new byte[8]), "clone", s_head.SizeBytes, 1) { IsAppendOnly = true }, Volume, Id(2))));
            foreach ((uint volume, Guid? view, uint down) in new (uint, Guid?, uint)[] { (Volume, Id(2), 0), (Volume, null, 1), (9, null, 1) })
            {
                var depths = new List<DepthRun>();
                Assert.Equal(IoStatus.Ok, loop.Run(store.DepthAsync(volume, view, 0, (ulong)all.Length, 1000, depths)));
                // The block that the first append ends in was filled up by the second one.
                ulong length = (ulong)all.Length, old = store.Snapshots(Volume)[0].SizeBytes < length ? (ulong)first.Length & ~(ulong)(Units.BlockBytes - 1) : length;
                Assert.Equal(old == length ? [new(length, down + 2)] : [new(old, down + 2), new DepthRun(length - old, down + 1)], depths);
            }
        }

        Assert.InRange(between, 5, 40);
    }

    private static string? FaultOf(SimLoop loop, ILayeredStore store, byte[] all, ref int kept)
    {
        ulong length = ((IAppendStore)store).AppendInfoOf(Volume)!.Value.LengthBytes;
        if (!Read(loop, store.OpenVolume(Volume)!, length).AsSpan().SequenceEqual(all.AsSpan(0, (int)length))) return $"the volume, {length} bytes, is another one";
        if (store.Snapshots(Volume) is not [{ } snapshot]) return null;
        kept++;
        ulong cut = snapshot.LengthBytes!.Value;
        if (cut > length) return $"the snapshot is {cut} bytes long and the volume {length}";
        return Read(loop, store.OpenSnapshot(Volume, snapshot.Uuid)!, cut).AsSpan().SequenceEqual(all.AsSpan(0, (int)cut)) ? null : $"the snapshot, {cut} bytes, is another one";
    }

    private static IStore Open(SimLoop loop, SimDisk disk, bool isNew, BrokenRules broken = BrokenRules.None)
    {
        if (isNew) Assert.Null(loop.Run(Store.FormatAsync(loop, disk, s_options)));
        StoreOpenResult opened = loop.Run(Store.OpenAsync(loop, disk, null, s_options with { BrokenRules = broken }));
        Assert.Null(opened.Refusal);
        if (isNew) Assert.Equal(IoStatus.Ok, loop.Run(opened.Store!.CreateVolumeAsync(s_head)));
        return opened.Store!;
    }

    private static void Append(SimLoop loop, IStore store, byte[] bytes)
    {
        Task<AppendResult> appending = ((IAppendStore)store).AppendAsync(Volume, default, bytes).AsTask();
        loop.RunUntil(() => appending.IsCompleted, EventsMax);
        Assert.Equal(AppendOutcome.Done, appending.Result.Outcome);
    }

    private static void Cut(SimLoop loop, ILayeredStore store, byte number) => Assert.Equal(IoStatus.Ok, loop.Run(store.CreateSnapshotsAsync([Request(number)])));

    private static SnapshotRequest Request(byte number) => new(Volume, Id(number), $"s{number}", 1);

    private static Guid Id(byte number) => new(9, 9, number, new byte[8]);

    private static byte[] Bytes(ulong seed, int length)
    {
        var bytes = new byte[length];
        new SeededRandom(seed).Fill(bytes);
        return bytes;
    }

    private static byte[] Read(SimLoop loop, IBlockDevice device, ulong length)
    {
        var content = new byte[device.SizeBytes];
        Task<ReadResult> reading = device.ReadAsync(0, content).AsTask();
        loop.RunUntil(() => reading.IsCompleted, EventsMax);
        Assert.Equal(IoStatus.Ok, reading.Result.Status);
        return content[..(int)length];
    }
}

using System.Globalization;
using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Fuzz.Storage;

/// <summary>
/// A small store that was closed, damaged anywhere, then opened and read whole: it is refused with a sentence, or it serves
/// what was written or an error, never anything else, and it never throws or hangs. Damaged stores per test:
/// BLOCKSERVER_FUZZ_STORES (default 1,500).
/// </summary>
public sealed class WholeStoreFuzz
{
    private const ulong EventsMax = 1_000_000;
    private static readonly StoreOptions Options = new() { RingBytes = 128 << 10, StoreUuid = new("0f0e0d0c-0b0a-0908-0706-050403020100") };

    private static readonly int Stores =
        int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_STORES"), CultureInfo.InvariantCulture, out int stores)
            ? stores : 1_500;

    /// <summary>Bits, bytes and ranges, most of them where metadata is; the end cut off.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_damaged_store_is_refused_or_serves_only_what_was_written(bool acceptsLoss)
    {
        (byte[] golden, SortedDictionary<uint, byte[]> contents) = Golden();
        int refused = 0, whole = 0, withErrors = 0;
        for (int i = 0; i < Stores; i++)
        {
            var random = new SeededRandom((ulong)i * 2 + (acceptsLoss ? 1UL : 0));
            byte[] bytes = Damaged(random, golden, seals: false);
            var loop = new SimLoop((ulong)i);
            (IStore? store, string? refusal) = Open(loop, bytes, acceptsLoss, i);
            if (store is null)
            {
                Assert.False(string.IsNullOrWhiteSpace(refusal), $"store {i}");
                refused++;
                continue;
            }

            bool isWhole = true;
            foreach ((uint id, byte[] content) in contents)
            {
                IBlockDevice? device = store.OpenVolume(id);
                Assert.True(device is not null || acceptsLoss, $"store {i}: volume {id} is gone");
                if (device is null || !IsRight(loop, device, content, $"store {i}, volume {id}")) isWhole = false;
            }

            if (isWhole) whole++;
            else withErrors++;
            Use(loop, store, $"store {i}");
        }

        Assert.True(refused > 0 && whole > 0 && withErrors > 0, $"{refused} refused, {whole} whole, {withErrors} with errors");
    }

    /// <summary>Pages sealed again after the damage, so that what lies behind the checksums is reached: nothing can be asked
    /// of the content then, but nothing may throw or hang.</summary>
    [Fact]
    public void A_forged_store_neither_throws_nor_hangs()
    {
        (byte[] golden, _) = Golden();
        int refused = 0, opened = 0;
        for (int i = 0; i < Stores; i++)
        {
            var random = new SeededRandom((ulong)i + 1_000_000);
            byte[] bytes = Damaged(random, golden, seals: true);
            var loop = new SimLoop((ulong)i);
            (IStore? store, string? refusal) = Open(loop, bytes, acceptsLoss: random.NextChance(0.5), i);
            if (store is null)
            {
                Assert.False(string.IsNullOrWhiteSpace(refusal), $"store {i}");
                refused++;
                continue;
            }

            opened++;
            foreach (VolumeHead head in store.Volumes)
            {
                if (store.OpenVolume(head.Id) is not { } device) continue;
                var target = new byte[Math.Min(device.SizeBytes, 4 * Units.MiB)];
                for (int at = 0; at < target.Length; at += Units.ExtentBytes)
                    Run(loop, device.ReadAsync((ulong)at, target.AsMemory(at, Math.Min(Units.ExtentBytes, target.Length - at))), $"store {i}");
            }

            Use(loop, store, $"store {i}");
        }

        Assert.True(refused > 0 && opened > 0, $"{refused} refused, {opened} opened");
    }

    /// <summary>Two volumes, several lives, every home written more than once; closed.</summary>
    private static (byte[] Bytes, SortedDictionary<uint, byte[]> Contents) Golden()
    {
        var loop = new SimLoop(7);
        var file = new ByteFile(loop, new byte[7 * Units.MiB]);
        Assert.Null(loop.Run(Store.FormatAsync(loop, file, Options)));
        var contents = new SortedDictionary<uint, byte[]> { [1] = new byte[2 * Units.MiB], [2] = new byte[Units.MiB] };
        var random = new SeededRandom(11);
        for (int life = 0; life < 4; life++)
        {
            IStore store = loop.Run(Store.OpenAsync(loop, file, null, Options)).Store!;
            foreach ((uint id, byte[] content) in contents)
            {
                if (life == 0) Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(new VolumeHead(id, Options.StoreUuid, $"v{id}", (ulong)content.Length, 1))));
                for (int i = 0; i < 12; i++)
                {
                    int at = random.NextBelow(content.Length - 40_000), length = 512 + random.NextBelow(39_000);
                    random.Fill(content.AsSpan(at, length));
                    Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(id)!.WriteAsync((ulong)at, content.AsMemory(at, length).ToArray(), WriteFlags.None)));
                }
            }

            Assert.Equal(IoStatus.Ok, loop.Run(store.CloseAsync()));
        }

        return (file.Bytes, contents);
    }

    private static byte[] Damaged(SeededRandom random, byte[] golden, bool seals)
    {
        byte[] bytes = [.. golden];
        Assert.Null(StoreGeometry.Plan((ulong)golden.Length, Options.RingBytes, Options.SlotFraction, out StoreGeometry geometry));
        int pages = bytes.Length / Units.BlockBytes;
        // Where metadata may lie: the superblocks, the ring, the slots in use; the rest is data.
        int slots = (int)(geometry.SlotsOffset / Units.BlockBytes);
        for (int count = 1 + random.NextBelow(4); count > 0; count--)
        {
            int page = random.NextBelow(5) switch
            {
                0 => random.NextBelow(2),
                1 => pages - 1 - random.NextBelow(2),
                2 => (int)(geometry.RingOffset / Units.BlockBytes) + random.NextBelow(slots - (int)(geometry.RingOffset / Units.BlockBytes)),
                3 => slots + random.NextBelow(12),
                _ => (int)geometry.DataStart + random.NextBelow(600),
            };
            Span<byte> target = bytes.AsSpan(page * Units.BlockBytes, Units.BlockBytes);
            int kind = random.NextBelow(4);
            if (kind == 0) target[random.NextBelow(target.Length)] ^= (byte)(1 << random.NextBelow(8));
            else if (kind == 1) Mutator.Mutate(random, target);
            else if (kind == 2) target.Slice(random.NextBelow(2048), 1 + random.NextBelow(2048)).Clear();
            else random.Fill(target[(512 * random.NextBelow(8))..]);
            if (!seals) continue;
            ulong address = (ulong)page * Units.BlockBytes;
            if (page < 2 || page >= pages - 2) System.Buffers.Binary.BinaryPrimitives.WriteUInt32LittleEndian(target, Crc32C.Compute(target[8..]));
            else Seal.Put(target, address, Seal.Fold(Options.StoreUuid));
        }

        return random.NextChance(0.05) ? bytes[..(random.NextBelow(pages) * Units.BlockBytes)] : bytes;
    }

    private static (IStore? Store, string? Refusal) Open(SimLoop loop, byte[] bytes, bool acceptsLoss, int number)
    {
        StoreOpenResult result = Run(
            loop, Store.OpenAsync(loop, new ByteFile(loop, bytes), null, Options with { AcceptDataLoss = acceptsLoss }), $"store {number}");
        return (result.Store, result.Refusal);
    }

    /// <summary>False when a block answers an error; content that was not written fails the test.</summary>
    private static bool IsRight(SimLoop loop, IBlockDevice device, byte[] content, string where)
    {
        bool isRight = true;
        var target = new byte[Units.BlockBytes];
        for (int at = 0; at < content.Length; at += Units.BlockBytes)
        {
            if ((ulong)(at + target.Length) > device.SizeBytes) return false;
            IoStatus status = Run(loop, device.ReadAsync((ulong)at, target), where).Status;
            if (status == IoStatus.Ok) Assert.True(target.AsSpan().SequenceEqual(content.AsSpan(at, target.Length)), $"{where}: offset {at} is wrong");
            else Assert.True(status is IoStatus.Corrupt or IoStatus.IoError, $"{where}: offset {at} answers {status}");
            isRight &= status == IoStatus.Ok;
        }

        return isRight;
    }

    /// <summary>It takes a change and closes, in whatever way.</summary>
    private static void Use(SimLoop loop, IStore store, string where)
    {
        foreach (VolumeHead head in store.Volumes)
        {
            if (store.OpenVolume(head.Id) is { } device) Run(loop, device.WriteAsync(512, new byte[8192], WriteFlags.Fua), where);
        }

        Run(loop, store.CloseAsync(), where);
    }

    private static T Run<T>(SimLoop loop, ValueTask<T> task, string where)
    {
        Task<T> running = task.AsTask();
        Assert.True(loop.RunUntil(() => running.IsCompleted, EventsMax), $"{where} hangs");
        Assert.True(running.IsCompletedSuccessfully, $"{where} throws {running.Exception}");
        return running.Result;
    }

    /// <summary>A medium that is an array; its end cuts requests off with an error.</summary>
    private sealed class ByteFile(SimLoop loop, byte[] bytes) : IFile
    {
        public byte[] Bytes => bytes;

        public ulong SizeBytes => (ulong)bytes.Length;

        public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) => Later(() =>
        {
            if (!Holds(offsetBytes, target.Length)) return IoStatus.IoError;
            bytes.AsSpan((int)offsetBytes, target.Length).CopyTo(target.Span);
            return IoStatus.Ok;
        });

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) => Later(() =>
        {
            if (!Holds(offsetBytes, source.Length)) return IoStatus.IoError;
            source.Span.CopyTo(bytes.AsSpan((int)offsetBytes));
            return IoStatus.Ok;
        });

        public ValueTask<IoStatus> FlushAsync() => Later(() => IoStatus.Ok);

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.NotSupported);

        private bool Holds(ulong offset, int length) => offset <= SizeBytes && (ulong)length <= SizeBytes - offset;

        private ValueTask<IoStatus> Later(Func<IoStatus> effect)
        {
            var done = new LoopEvent<IoStatus>();
            loop.Schedule(1_000, () => done.Set(effect()));
            return done.WaitAsync();
        }
    }
}

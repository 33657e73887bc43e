using System.Buffers.Binary;
using System.Globalization;
using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Fuzz.Scsi;

/// <summary>
/// Damaged CDBs, parameter lists and saved reservations through the whole target, from two nexuses, with task management
/// in between: never an exception, every command answered or aborted, every buffer returned, and what is refused as
/// illegal has not touched the device. Seeded; inputs: BLOCKSERVER_FUZZ_INPUTS (default 500,000, divided by five here).
/// </summary>
public sealed class ScsiFuzz
{
    private static readonly int Inputs =
        int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_INPUTS"), CultureInfo.InvariantCulture, out int inputs)
            ? inputs : 500_000;

    // One right example of every command with a list or an address, to be damaged.
    internal static readonly string[] Examples =
    [
        "000000000000", "030100001200", "080000050100", "0A0000050100", "120100010000", "120183010000", "12018F010000", "151000001800", "151000001800",
        "160000000000", "170000000000", "1A003F00FF00", "1B0000000200", "1B0000000300", "1D0400000000", "1E0000000100", "1E0000000000",
        "25000000000000000000", "28000000000500000100", "2A080000000500000100", "2E020000000500000100", "2F020000000500000100", "2F060000000500000100",
        "34000000000500000100", "35000000000500000100", "37000D00000000010000", "41080000000500000100", "42000000000000001800", "42000000000000002800",
        "48010000000000020400", "48020000000000000000", "481F0000000000000000", "4D004C00000000010000", "55100000000000001C00", "5A003F00000000010000",
        "5E000000000000010000", "5E010000000000010000", "5E020000000000010000", "5E030000000000010000", "5F000000000000001800", "5F010100000000001800",
        "5F020100000000001800", "5F030000000000001800", "5F040100000000001800", "5F050300000000001800", "5F060000000000001800", "5F070000000000004800",
        "5F000000000000004C00", "83000000000000000000000000680000", "84000100000000000000000001000000", "84030000000000000000000001000000",
        "84040100000000000000000001000000", "88000000000000000005000000010000", "89000000000000000005000000010000", "8A000000000000000005000000010000",
        "8B000000000000000005000000010000", "8E020000000000000005000000010000", "8F020000000000000005000000010000", "90000000000000000005000000010000",
        "91000000000000000005000000010000", "93080000000000000005000000010000", "93010000000000000005000000010000", "9C000000000000000005000000010000",
        "9E100000000000000000000000200000", "9E120000000000000000000001000000", "A00002000000000001000000", "A30A00000000000001000000",
        "A30C00000000000010000000", "A30C02480002000010000000", "A30D80000000000000400000", "A40A00000000000000080000", "A8000000000500000001" + "0000",
        "AA000000000500000001" + "0000", "AE020000000500000001" + "0000", "AF020000000500000001" + "0000", "B70D00000000000001000000",
    ];

    [Fact]
    public void CommandsAndParameterLists()
    {
        int per = Math.Max(1, Inputs / 5 / 8);
        for (ulong seed = 1; seed <= 8; seed++) RunSeed(seed, per);
    }

    [Fact]
    public void SavedReservations()
    {
        var random = new SeededRandom(11);
        byte[] name = Encoding.ASCII.GetBytes("iqn.2024-01.test:a,i,0x400000000001");
        byte[] golden = [.. Convert.FromHexString("50525356000000000100000001000000030101008877665544332211010001002300"), .. name];
        int accepted = 0;
        for (int i = 0; i < Inputs; i++)
        {
            byte[] bytes = golden[..(random.NextChance(0.9) ? golden.Length : random.NextBelow(golden.Length + 1))];
            if (i > 0) Mutator.Mutate(random, bytes);
            if (bytes.Length >= 8 && random.NextChance(0.7))
            {
                BinaryPrimitives.WriteUInt32LittleEndian(bytes, 0x56535250);
                BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(4), Crc32C.Compute(bytes.AsSpan(8)));
            }

            if (PersistentReservations.TryRead(bytes, out PersistentReservations state) is null && bytes.Length > 0)
            {
                accepted++;
                Assert.True(Enum.IsDefined(state.Type));
            }
        }

        Assert.True(accepted > 0);
    }

    private static void RunSeed(ulong seed, int inputs)
    {
        var world = new World(seed);
        string last = "";
        try
        {
            for (int i = 0; i < inputs; i++) last = world.Step();
            world.Finish();
        }
        catch (Exception e) when (e is not OutOfMemoryException)
        {
            throw new InvalidOperationException($"seed {seed}, at {last}: {e.Message}", e);
        }
    }

    /// <summary>A target with a thin and a thick unit, and two nexuses.</summary>
    private sealed class World
    {
        private readonly SimLoop _loop;
        private readonly SeededRandom _random;
        private readonly ScsiTarget _target;
        private readonly CountingDevice[] _devices;
        private readonly LogicalUnit[] _units;
        private readonly ScsiNexus[] _nexuses = new ScsiNexus[2];
        private uint _tag;
        private int _open;
        private int _good, _sent;
        private Exception? _failure;

        public World(ulong seed)
        {
            _loop = new SimLoop(seed);
            _random = new SeededRandom(seed * 77);
            _target = new ScsiTarget(_loop, new ScsiTargetOptions { Name = "iqn.t", PortalGroups = [1, 2] });
            _devices = [new CountingDevice(seed % 2 == 0 ? _loop : null), new CountingDevice(seed % 4 < 2 ? _loop : null)];
            _units = new LogicalUnit[2];
            for (ushort lun = 0; lun < 2; lun++)
            {
                var options = new LogicalUnitOptions
                {
                    Uuid = new Guid(0x0f0e0d0c, 0x0b0a, lun, 8, 7, 6, 5, 4, 3, 2, 1), IsThin = lun == 0, IsRemovable = lun == 1,
                    BlockBytes = lun == 0 ? 512 : 4096, CompareAndWriteBlocksMax = 8, SanitizeNanosMin = 10_000, TasksMax = 16,
                };
                _units[lun] = new LogicalUnit(_loop, _devices[lun], options, new Store());
                _target.SetLun(lun, _units[lun]);
            }

            for (int i = 0; i < 2; i++) Login(i);
        }

        /// <summary>One input; answers what it was.</summary>
        public string Step()
        {
            switch (_random.NextBelow(200))
            {
                case 0:
                    _target.RemoveNexus(_nexuses[0]);
                    Login(0);
                    return "login";
                case 1:
                    Manage();
                    return "task management";
                case 2:
                    _units[0].OnLowSpace();
                    return "low space";
            }

            var command = new ScsiCommand { Nexus = _nexuses[_random.NextBelow(2)], Tag = ++_tag };
            command.Lun = _random.NextChance(0.95) ? (ulong)_random.NextBelow(2) << 48 : _random.NextUInt64();
            command.Attribute = _random.NextChance(0.9) ? TaskAttribute.Simple : (TaskAttribute)_random.NextBelow(8);
            byte[] cdb = Convert.FromHexString(Examples[_random.NextBelow(Examples.Length)]);
            if (_random.NextChance(0.6)) Mutator.Mutate(_random, cdb);
            cdb.CopyTo(command.Cdb, 0);
            string text = Convert.ToHexString(cdb);
            ScsiPlan plan = _target.Plan(command);
            Assert.True(plan.OutBytes is >= 0 and <= Units.RequestBytesMax && plan.InBytesMax is >= 0 and <= Units.RequestBytesMax);
            Assert.True(plan.Lead is >= 0 and < Units.BlockBytes);
            int came = _random.NextChance(0.8) ? plan.OutBytes : _random.NextBelow(plan.OutBytes + 1);
            if (came > 0 && !plan.IsRefused)
            {
                command.OutBuffer = _loop.Buffers.TryRent(plan.Lead + came);
                if (command.OutBuffer is null) came = 0;
                else ListOf(cdb, command.OutBuffer.Slice(plan.Lead, came).Span);
                (command.OutStart, command.OutLength) = (plan.Lead, came);
                command.OutOfferedBytes = _random.NextChance(0.9) ? came : _random.NextBelow(70000);
                text += " " + Convert.ToHexString(command.DataOut.Span[..Math.Min(120, came)]);
            }

            Send(command, plan);
            _loop.RunUntil(() => false, _random.NextChance(0.9) ? 200UL : 2);
            if (_failure is not null) throw new InvalidOperationException($"{text}: {_failure.Message}", _failure);
            return text;
        }

        public void Finish()
        {
            _loop.RunToQuiescence();
            Assert.Null(_failure);
            Assert.True(_good > _sent / 10, $"only {_good} of {_sent} commands were taken");
            Assert.Equal(0, _open);
            Assert.Equal(0, _loop.Buffers.LentCount);
            Assert.All(_units, u => Assert.Equal(0, u.TaskCount));
        }

        private void Login(int index)
        {
            _nexuses[index] = new ScsiNexus
            {
                InitiatorName = $"iqn.2024-01.test:{index}", InitiatorPort = $"iqn.2024-01.test:{index},i,0x400000000001", PortalGroup = (ushort)(1 + index),
            };
            _target.AddNexus(_nexuses[index]);
        }

        private async void Manage()
        {
            _open++;
            try
            {
                var function = (TaskFunction)_random.NextBelow(9);
                await _target.ManageAsync(_nexuses[_random.NextBelow(2)], function, (ulong)_random.NextBelow(3) << 48, _tag);
            }
            catch (Exception e) when (e is not OutOfMemoryException)
            {
                _failure ??= e;
            }

            _open--;
        }

        /// <summary>What goes wrong behind an await is kept for the step that meets it.</summary>
        private async void Send(ScsiCommand command, ScsiPlan plan)
        {
            try
            {
                await JudgeAsync(command, plan);
            }
            catch (Exception e) when (e is not OutOfMemoryException)
            {
                _failure ??= e;
            }
        }

        private async ValueTask JudgeAsync(ScsiCommand command, ScsiPlan plan)
        {
            _open++;
            int number = ++_sent;
            bool isAlone = _open == 1 && _units[0].TaskCount + _units[1].TaskCount == 0 && !_units[0].IsSanitizing && !_units[1].IsSanitizing;
            ulong before = _devices[0].Changes + _devices[1].Changes;
            bool isAnswered = await _target.ExecuteAsync(command);
            Assert.True(isAnswered || command.IsAborted);
            Assert.True(command.SenseLength is >= 0 and <= ScsiCommand.SenseBytesMax);
            Assert.True(Enum.IsDefined(command.Status));
            if (isAnswered && command.Status == ScsiStatus.Good)
            {
                _good++;
                Assert.False(plan.IsRefused);
                Assert.True(command.InLength <= plan.InBytesMax);
            }
            else if (isAnswered)
            {
                Assert.True((command.Status == ScsiStatus.CheckCondition) == (command.SenseLength >= 8));
                bool isDescriptor = command.Sense[0] == 0x72;
                int key = command.SenseLength == 0 ? 5 : command.Sense[isDescriptor ? 1 : 2] & 0x0F;
                // A copy may fail in its second segment; everything else that is illegal was noticed before.
                bool isRefused = key is 5 or 6 or 2 && command.Cdb[0] != ScsiCopy;
                if (isRefused && isAlone && number == _sent) Assert.Equal(before, _devices[0].Changes + _devices[1].Changes);
            }

            command.InBuffer?.Return();
            command.OutBuffer?.Return();
            _open--;
        }

        private const byte ScsiCopy = 0x83;

        /// <summary>Data that has some chance of being right.</summary>
        private void ListOf(byte[] cdb, Span<byte> target)
        {
            string? right = cdb[0] switch
            {
                0x15 => "00000000" + "0812" + "00" + new string('0', 34),
                0x55 => "0000000000000008" + "00000000" + "00000200" + "0A0A" + "0410000000" + "00FFFF0000",
                0x42 => "0026" + "0020" + "00000000" + "0000000000000005" + "00000008" + "00000000" + "0000000000000040" + "00000008" + "00000000",
                0x48 => "01000200" + "AABBCCDD",
                0x5F => "0000000000000000" + "0000000000000001" + "00000000" + "01000000" + "00000030" + "4500002C" + Name,
                0x83 => "0100" + "0040" + "00000000" + "0000001C" + "00000000" + Target(0) + Target(1) + "02000018" + "0000" + "0001" + "0000" + "0008" + new string('0', 32),
                _ => null,
            };
            if (right is null || target.IsEmpty) return;
            byte[] bytes = Convert.FromHexString(right);
            target.Clear();
            bytes.AsSpan(0, Math.Min(bytes.Length, target.Length)).CopyTo(target);
            if (cdb[0] == 0x5F && _random.NextChance(0.5)) target[Math.Min(7, target.Length - 1)] = 1;
            if (_random.NextChance(0.5)) Mutator.Mutate(_random, target);
        }

        private static string Name => Convert.ToHexString(Encoding.ASCII.GetBytes("iqn.2024-01.test:1,i,0x400000000001"));

        /// <summary>The UUID designator of a unit in an identification descriptor.</summary>
        private string Target(int lun) =>
            "E4000000" + "010A0012" + "1000" + _units[lun].Options.Uuid.ToString("N").ToUpperInvariant() + "0000" + "00" + "000000";
    }

    /// <summary>1 MiB that counts changes; with a loop it takes its time.</summary>
    private sealed class CountingDevice(SimLoop? loop) : IBlockDevice
    {
        private readonly MemoryDevice _inner = new(1 << 20, loop);

        public ulong Changes { get; private set; }

        public ulong SizeBytes => _inner.SizeBytes;

        public bool IsReadOnly => false;

        public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => _inner.ReadAsync(offsetBytes, target);

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
        {
            Changes++;
            return _inner.WriteAsync(offsetBytes, source, flags);
        }

        public ValueTask<IoStatus> FlushAsync() => _inner.FlushAsync();

        public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
        {
            Changes++;
            return _inner.TrimAsync(offsetBytes, lengthBytes, flags);
        }

        public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
        {
            Changes++;
            return _inner.WriteZeroesAsync(offsetBytes, lengthBytes, flags);
        }

        public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => _inner.PrefetchAsync(offsetBytes, lengthBytes);

        public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
            _inner.MapAsync(offsetBytes, lengthBytes, runsMax, runs);
    }

    private sealed class Store : IReservationStore
    {
        private byte[] _bytes = [];

        public ValueTask<(IoStatus Status, ReadOnlyMemory<byte> Bytes)> LoadAsync() => new((IoStatus.Ok, _bytes));

        public ValueTask<IoStatus> SaveAsync(ReadOnlyMemory<byte> bytes)
        {
            Assert.True(bytes.Length <= PersistentReservations.SavedBytesMax);
            _bytes = bytes.ToArray();
            Assert.Null(PersistentReservations.TryRead(_bytes, out _));
            return new ValueTask<IoStatus>(IoStatus.Ok);
        }
    }
}

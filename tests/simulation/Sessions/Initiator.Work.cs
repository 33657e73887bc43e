using System.Buffers.Binary;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Tests.Simulation.Sessions;

// What it asks for, and which answers it accepts.
internal sealed partial class Initiator
{
    private const int RetriesMax = 30;

    private async Task WorkAsync(SimSession session)
    {
        while (!session.IsDead && world.IsWorking)
        {
            world.RequestsLeft--;
            SimUnit unit = world.Units[_dice.NextBelow(world.Units.Count)];
            int dice = _dice.NextBelow(100);
            await (dice switch
            {
                < 29 => WriteAsync(session, unit),
                < 34 => CopyAsync(session, unit),
                < 40 => WriteAndAbortAsync(session, unit),
                < 60 => ReadAsync(session, unit),
                < 66 => ZeroAsync(session, unit),
                < 82 => ExchangeAsync(session, unit),
                < 87 => FlushAsync(session, unit),
                < 90 => MapAsync(session, unit),
                < 92 => LookAsync(session, unit),
                < 95 => ClearAsync(session, unit),
                _ => PlayReservationAsync(session, unit),
            });
            if (_dice.NextChance(0.1)) await world.Loop.DelayAsync(1 + _dice.NextBelow(2_000_000UL));
        }
    }

    /// <summary>The first command of a nexus is told about the login.</summary>
    private async Task GreetAsync(SimSession session, SimUnit unit)
    {
        TaskAnswer answer = await session.RunAsync(unit.LunField, new byte[16], started: MarkStray(unit));
        if (answer.End != TaskEnd.Answered) return;
        if (answer.IsAttention && answer.Code >> 8 == 0x29) Attend(session, unit, answer);
        else world.Violate(ViolationKind.WrongAttention, $"{_name}: the first command was answered {answer}");
    }

    /// <summary>When nothing else goes on, what is owed is told.</summary>
    private async Task DrainAsync(SimSession session, SimUnit unit)
    {
        AttentionOracle attentions = session.Attentions[unit.LunField];
        for (int i = 0; i < RetriesMax; i++)
        {
            bool isOwed = attentions.OwesReset;
            TaskAnswer answer = await session.RunAsync(unit.LunField, new byte[16], started: MarkStray(unit));
            if (answer.End != TaskEnd.Answered) return;
            if (answer.IsAttention)
            {
                Attend(session, unit, answer);
                continue;
            }

            if (!answer.IsGood) world.Violate(ViolationKind.WrongAnswer, $"TEST UNIT READY was answered {answer}");
            else if (isOwed && attentions.OwesReset) world.Violate(ViolationKind.WrongAttention, $"{_name}: a reset was never told");
            return;
        }
    }

    private void Attend(SimSession session, SimUnit unit, TaskAnswer answer)
    {
        world.Counters[SessionDid.Attentions]++;
        if (!session.Attentions[unit.LunField].Take(answer.Code))
            world.Violate(ViolationKind.WrongAttention, $"{_name}: LUN {unit.Lun} told {answer} without a cause, or twice");
    }

    private static Action<SimTask> MarkStray(SimUnit unit, Action<SimTask>? also = null) => task =>
    {
        task.MayVanish |= unit.HasStrayAborts || unit.AbortsUnderWay > 0;
        also?.Invoke(task);
    };

    /// <summary>Runs a command until it has an answer of its own; answers that nothing explains are violations.</summary>
    private async Task<TaskAnswer> AskAsync(
        SimSession session, SimUnit unit, byte[] cdb, int expectedIn = 0, byte[]? dataOut = null, Action<SimTask>? started = null,
        bool mayMiscompare = false, Func<TaskAnswer, ulong, ulong, bool>? explains = null)
    {
        TaskAttribute attribute = _dice.NextBelow(20) switch
        {
            0 => TaskAttribute.Ordered,
            1 => TaskAttribute.HeadOfQueue,
            _ => TaskAttribute.Simple,
        };
        for (int i = 0; ; i++)
        {
            ulong start = world.Tick();
            SimTask? task = null;
            TaskAnswer answer = await session.RunAsync(
                unit.LunField, cdb, expectedIn, dataOut,
                MarkStray(unit, t =>
                {
                    task = t;
                    started?.Invoke(t);
                }),
                attribute);
            ulong end = world.Tick();
            if (answer.End != TaskEnd.Answered)
            {
                session.Attentions[unit.LunField].OnLostAnswer();
                return answer;
            }

            JudgeReservation(session, unit, cdb[0], answer, start, end);
            bool goesOn = i < RetriesMax && !session.IsDead;
            if (answer.IsAttention)
            {
                Attend(session, unit, answer);
                if (goesOn) continue;
                return answer;
            }

            if (answer.Status is ScsiStatus.Busy or ScsiStatus.TaskSetFull && goesOn)
            {
                await world.Loop.DelayAsync(1_000_000);
                continue;
            }

            bool isExplained = answer.IsGood || answer.Status == ScsiStatus.ReservationConflict || (mayMiscompare && answer.Key == 0x0E)
                || (task!.IsSpoiled && answer is { Key: 0x0B, Code: 0x4705 }) || explains?.Invoke(answer, start, end) == true;
            if (!isExplained) world.Violate(ViolationKind.WrongAnswer, $"{_name}: command {cdb[0]:X2} was answered {answer}");
            return answer;
        }
    }

    private void JudgeReservation(SimSession session, SimUnit unit, byte opcode, TaskAnswer answer, ulong start, ulong end)
    {
        ReservationOracle oracle = unit.Reservations;
        bool isWrite = opcode is 0x8A or 0x8E or 0x93 or 0x42 or 0x89 or 0x83, isRead = opcode is 0x88;
        if (answer.Status == ScsiStatus.ReservationConflict)
        {
            world.Counters[SessionDid.Conflicts]++;
            if (opcode != 0x5F && !oracle.MayRefuse(start, end))
                world.Violate(ViolationKind.WrongReservation, $"{_name}: command {opcode:X2} was refused, though nobody holds LUN {unit.Lun}");
        }
        else if (answer.IsGood && (isWrite || isRead) && oracle.MustRefuse(PortOf(session), isWrite, start, end))
        {
            world.Violate(ViolationKind.WrongReservation, $"{_name}: command {opcode:X2} went past the reservation of LUN {unit.Lun}");
        }
    }

    private Task<TaskAnswer> WriteAsync(SimSession session, SimUnit unit)
    {
        (ulong first, ulong count) = DrawRange(session, unit);
        return WriteAsync(session, unit, first, count, null);
    }

    private async Task<TaskAnswer> WriteAsync(SimSession session, SimUnit unit, ulong first, ulong count, Action<SimTask>? started)
    {
        bool isFua = _dice.NextChance(0.15), isVerified = _dice.NextChance(0.08);
        ulong id = world.NextId();
        var data = new byte[count * Units.SectorBytes];
        VolumeModel.Fill(data, id, unit.Model.Head.Id, first);
        byte[] cdb = Cdb16(isVerified ? (byte)0x8E : (byte)0x8A, unit, first, count, isFua && !isVerified ? (byte)0x08 : (byte)0);
        ModelWrite write = world.BeginWrite(unit, first, count, isZero: false, id);
        return await ChangeAsync(session, unit, cdb, data, [write], isFua || isVerified, SessionDid.Writes, started);
    }

    /// <summary>A change from its command to what is known about it. It is one of <paramref name="changed"/>; null: of the unit that is
    /// asked.</summary>
    private async Task<TaskAnswer> ChangeAsync(
        SimSession session, SimUnit unit, byte[] cdb, byte[]? data, ModelWrite[] writes, bool isDurable, SessionDid done,
        Action<SimTask>? started = null, bool mayMiscompare = false, SimUnit? changed = null,
        Func<TaskAnswer, ulong, ulong, bool>? explains = null)
    {
        SimTask? task = null;
        changed ??= unit;
        TaskAnswer answer = await AskAsync(
            session, unit, cdb, 0, data,
            t =>
            {
                task = t;
                started?.Invoke(t);
            },
            mayMiscompare, explains);
        foreach (ModelWrite write in writes)
        {
            if (answer.IsGood) world.EndWrite(changed, write, isOk: true, isDurable);
            else if (answer.IsRefused || task is null) world.NeverHappened(changed, write);
            else if (answer.End == TaskEnd.Aborted) world.EndWrite(changed, write, isOk: false, isDurable: false);
            else session.Unsettled.Add((task.Link, changed.Model, write));
        }

        if (answer.IsGood) world.Counters[done]++;
        return answer;
    }

    /// <summary>ABORT TASK on a write, and mostly the same range once more: the old data must not come back.</summary>
    private Task WriteAndAbortAsync(SimSession session, SimUnit unit)
    {
        (ulong first, ulong count) = DrawRange(session, unit);
        return WriteAndAbortAsync(session, unit, first, count);
    }

    private async Task WriteAndAbortAsync(SimSession session, SimUnit unit, ulong first, ulong count)
    {
        bool isTaken = false;
        TaskAnswer answer = await WriteAsync(session, unit, first, count, task =>
        {
            if (isTaken) return;
            isTaken = true;
            world.Spawn(async () =>
            {
                if (_dice.NextChance(0.8)) await world.Loop.DelayAsync(1 + _dice.NextBelow(1UL << (10 + _dice.NextBelow(12))));
                if (!task.IsFinished) await session.ManageAsync(TaskFunction.AbortTask, unit.LunField, task);
            });
        });
        if (answer.End == TaskEnd.Aborted) world.Counters[SessionDid.Aborts]++;
        if (!session.IsDead && _dice.NextChance(0.5)) await WriteAsync(session, unit, first, count, null);
        else await LookTwiceAsync(session, unit, first, count);
    }

    /// <summary>What is settled stays as it is: two looks, the second a while later.</summary>
    private async Task LookTwiceAsync(SimSession session, SimUnit unit, ulong first, ulong count)
    {
        for (int i = 0; i < 2 && !session.IsDead; i++)
        {
            await ReadAsync(session, unit, first, count);
            await world.Loop.DelayAsync(1 + _dice.NextBelow(8_000_000UL));
        }
    }

    /// <summary>UNMAP of one to three ranges, or WRITE SAME of zeros.</summary>
    private async Task ZeroAsync(SimSession session, SimUnit unit)
    {
        if (_dice.NextChance(0.5))
        {
            (ulong first, ulong count) = DrawRange(session, unit);
            bool hasNoData = _dice.NextChance(0.5), unmaps = _dice.NextChance(0.5);
            byte flags = (byte)((hasNoData ? 1 : 0) | (unmaps ? 8 : 0));
            ModelWrite write = world.BeginWrite(unit, first, count, isZero: true, world.NextId());
            byte[]? block = hasNoData ? null : new byte[unit.BlockBytes];
            await ChangeAsync(session, unit, Cdb16(0x93, unit, first, count, flags), block, [write], false, SessionDid.Zeroes);
            return;
        }

        int ranges = 1 + _dice.NextBelow(3);
        var list = new byte[8 + 16 * ranges];
        BinaryPrimitives.WriteUInt16BigEndian(list, (ushort)(list.Length - 2));
        BinaryPrimitives.WriteUInt16BigEndian(list.AsSpan(2), (ushort)(16 * ranges));
        var writes = new ModelWrite[ranges];
        for (int i = 0; i < ranges; i++)
        {
            (ulong first, ulong count) = DrawRange(session, unit);
            writes[i] = world.BeginWrite(unit, first, count, isZero: true, world.NextId());
            BinaryPrimitives.WriteUInt64BigEndian(list.AsSpan(8 + 16 * i), first / unit.SectorsPerLba);
            BinaryPrimitives.WriteUInt32BigEndian(list.AsSpan(16 + 16 * i), (uint)(count / unit.SectorsPerLba));
        }

        var cdb = new byte[16];
        cdb[0] = 0x42;
        BinaryPrimitives.WriteUInt16BigEndian(cdb.AsSpan(7), (ushort)list.Length);
        await ChangeAsync(session, unit, cdb, list, writes, false, SessionDid.Zeroes);
    }

    /// <summary>Reads a ticket and replaces it by COMPARE AND WRITE: each content may be replaced once.</summary>
    private async Task ExchangeAsync(SimSession session, SimUnit unit)
    {
        ulong first = unit.TicketSector(_dice.NextBelow(SimUnit.Tickets)), count = unit.SectorsPerLba;
        byte[]? old = await ReadAsync(session, unit, first, count);
        if (old is null) return;
        ulong id = world.NextId();
        var data = new byte[2 * old.Length];
        old.CopyTo(data, 0);
        VolumeModel.Fill(data.AsSpan(old.Length), id, unit.Model.Head.Id, first);
        byte[] cdb = Cdb16(0x89, unit, first, 0, 0);
        cdb[13] = 1;
        ModelWrite write = world.BeginWrite(unit, first, count, isZero: false, id);
        unit.Model.BeginRead();
        ulong start = world.Tick();
        TaskAnswer answer = await ChangeAsync(
            session, unit, cdb, data, [write], false, SessionDid.Exchanges, mayMiscompare: true);
        if (answer.IsGood)
        {
            ulong oldId = BinaryPrimitives.ReadUInt64LittleEndian(old);
            if (!unit.Replace(first, oldId))
                world.Violate(ViolationKind.ExecutedTwice, $"{_name}: content {oldId} of sector {first} was replaced twice, now by {id}");
            if (unit.Model.EndRead(first, old, start) is { } fault) world.Violate(fault);
        }

        unit.Model.ReadDone();
        if (answer.IsRefused && answer.Key == 0x0E) world.Counters[SessionDid.Miscompares]++;
    }

    private async Task FlushAsync(SimSession session, SimUnit unit)
    {
        ulong start = world.Tick();
        TaskAnswer answer = await AskAsync(session, unit, Cdb16(0x91, unit, 0, 0, 0));
        world.Tick();
        if (!answer.IsGood) return;
        unit.Model.Flushed(start);
        world.Counters[SessionDid.Flushes]++;
    }

    private async Task ReadAsync(SimSession session, SimUnit unit)
    {
        (ulong first, ulong count) = DrawRange(session, unit);
        await ReadAsync(session, unit, first, count);
    }

    private async Task<byte[]?> ReadAsync(SimSession session, SimUnit unit, ulong first, ulong count)
    {
        int length = (int)(count * Units.SectorBytes);
        int expected = _dice.NextChance(0.05) ? length + 512 : length; // more than there is: an underflow
        unit.Model.BeginRead();
        ulong start = world.Tick();
        TaskAnswer answer = await AskAsync(session, unit, Cdb16(0x88, unit, first, count, 0), expected);
        world.Tick();
        if (answer.IsGood)
        {
            world.Counters[SessionDid.ReadsJudged]++;
            if (answer.DataIn.Length != length) world.Violate(ViolationKind.WrongData, $"{answer.DataIn.Length} bytes of a read of {length}");
            else if (unit.Model.EndRead(first, answer.DataIn, start) is { } fault) world.Violate(fault);
            else if (unit.Model.JudgeSettled(first, answer.DataIn, start, world.Tick()) is { } late) world.Violate(late);
        }

        unit.Model.ReadDone();
        return answer.IsGood ? answer.DataIn : null;
    }

    /// <summary>GET LBA STATUS: what is said to be a hole must have read as zeros.</summary>
    private async Task MapAsync(SimSession session, SimUnit unit)
    {
        const int allocation = 8 + 16 * 32;
        (ulong first, _) = DrawRange(session, unit);
        byte[] cdb = Cdb16(0x9E, unit, first, allocation, 0x12);
        BinaryPrimitives.WriteUInt32BigEndian(cdb.AsSpan(10), allocation);
        unit.Model.BeginRead();
        ulong start = world.Tick();
        TaskAnswer answer = await AskAsync(session, unit, cdb, allocation);
        world.Tick();
        for (int at = 8; answer.IsGood && at + 16 <= answer.DataIn.Length; at += 16)
        {
            ReadOnlySpan<byte> one = answer.DataIn.AsSpan(at, 16);
            ulong sector = BinaryPrimitives.ReadUInt64BigEndian(one) * unit.SectorsPerLba;
            ulong sectors = BinaryPrimitives.ReadUInt32BigEndian(one[8..]) * unit.SectorsPerLba;
            if (sectors == 0 || sector + sectors > unit.Model.Sectors)
                world.Violate(ViolationKind.WrongMap, $"LBA status from sector {sector}+{sectors}");
            else if (one[12] == 1 && unit.Model.JudgeHole(sector, sectors, start) is { } fault) world.Violate(fault);
            world.Counters[SessionDid.MapsJudged]++;
        }

        unit.Model.ReadDone();
    }

    /// <summary>INQUIRY passes whatever waits; REPORT LUNS names the units.</summary>
    private async Task LookAsync(SimSession session, SimUnit unit)
    {
        byte[] inquiry = new byte[16];
        (inquiry[0], inquiry[4]) = (0x12, 96);
        TaskAnswer answer = await AskAsync(session, unit, inquiry, 96);
        if (answer.IsGood && answer.DataIn.Length < 36) world.Violate(ViolationKind.WrongAnswer, "INQUIRY data is short");
        byte[] report = new byte[16];
        (report[0], report[9]) = (0xA0, 64);
        answer = await AskAsync(session, unit, report, 64);
        if (answer.IsGood && answer.DataIn.Length != 8 + 8 * world.Units.Count)
            world.Violate(ViolationKind.WrongAnswer, "REPORT LUNS names other units");
    }

    /// <summary>The functions that end more than one task, also of others.</summary>
    private async Task ClearAsync(SimSession session, SimUnit unit)
    {
        int dice = _dice.NextBelow(20);
        TaskFunction function = dice switch
        {
            < 8 => TaskFunction.AbortTaskSet,
            < 13 => TaskFunction.ClearTaskSet,
            < 18 => TaskFunction.LogicalUnitReset,
            < 19 => TaskFunction.TargetWarmReset,
            _ => TaskFunction.TargetColdReset,
        };
        bool isOwn = function == TaskFunction.AbortTaskSet;
        ushort code = function switch
        {
            TaskFunction.ClearTaskSet => 0x2F00,
            TaskFunction.LogicalUnitReset => 0x2903,
            TaskFunction.TargetWarmReset => 0x2902,
            _ => 0x2901,
        };
        bool isTarget = function >= TaskFunction.TargetWarmReset;
        SimUnit[] units = isTarget ? [.. world.Units] : [unit];
        var told = new List<(AttentionOracle Attentions, int Before)>();
        if (!isOwn)
        {
            foreach (SimUnit one in units)
            {
                one.Causes.Add(code);
                one.AbortsUnderWay++;
                foreach (SimSession other in world.Sessions)
                {
                    AttentionOracle attentions = other.Attentions[one.LunField];
                    attentions.Allow(code);
                    told.Add((attentions, attentions.ResetsTold));
                    if (other != session) other.OnForeignAbort(one.LunField);
                }
            }
        }

        foreach (SimUnit one in units) one.OnAbort(true, world.Tick());
        TaskFunctionResponse? response = await session.ManageAsync(function, unit.LunField);
        foreach (SimUnit one in units) one.OnAbort(response is null, world.Tick());
        foreach (SimUnit one in units)
        {
            if (isOwn) continue;
            one.AbortsUnderWay--;
            if (response is null) one.HasStrayAborts = true; // it may still be done, whenever
            else one.Causes.Remove(code);
            foreach (SimSession other in world.Sessions)
            {
                if (other != session) other.OnForeignAbort(one.LunField);
            }
        }

        if (response is null) return;
        if (response != TaskFunctionResponse.Complete) world.Violate(ViolationKind.WrongAnswer, $"{function} was answered {response}");
        world.Counters[SessionDid.SetAborts]++;
        if (code >> 8 != 0x29 || isOwn) return;
        foreach ((AttentionOracle attentions, int before) in told) attentions.OnReset(before);
    }

    private (ulong First, ulong Count) DrawRange(SimSession session, SimUnit unit)
    {
        ulong step = unit.SectorsPerLba;
        ulong most = (ulong)session.Keys.TransferBytesMax / Units.SectorBytes;
        ulong count = 1 + _dice.NextBelow(Math.Min(most, _dice.NextChance(0.05) ? 1024UL : 48UL));
        count = Math.Max(step, count / step * step);
        ulong first = _dice.NextBelow(unit.FreeSectors - count + 1);
        if (_dice.NextChance(0.6)) first %= 192; // a hot corner, so that requests meet
        return (first / step * step, count);
    }

    private static byte[] Cdb16(byte opcode, SimUnit unit, ulong firstSector, ulong sectors, byte flags)
    {
        var cdb = new byte[16];
        (cdb[0], cdb[1]) = (opcode, flags);
        BinaryPrimitives.WriteUInt64BigEndian(cdb.AsSpan(2), firstSector / unit.SectorsPerLba);
        BinaryPrimitives.WriteUInt32BigEndian(cdb.AsSpan(10), (uint)(sectors / unit.SectorsPerLba));
        return cdb;
    }
}

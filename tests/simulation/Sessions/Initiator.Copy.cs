using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation.Sessions;

// EXTENDED COPY. What is to be copied is written to a desk that nobody else uses, as it has to be in the place it is copied to; so
// the copy is a change of that place like every other one.
internal sealed partial class Initiator
{
    private const int NotReachable = 0x0D02, DeviceFailure = 0x0D01;

    private async Task CopyAsync(SimSession session, SimUnit asked)
    {
        SimUnit from = world.Units[_dice.NextBelow(world.Units.Count)], to = world.Units[_dice.NextBelow(world.Units.Count)];
        if (from.TakeDesk() is not { } desk) return;
        ulong most = Math.Min(SimUnit.DeskSectors, (ulong)session.Keys.TransferBytesMax / Units.SectorBytes);
        ulong step = Math.Max(from.SectorsPerLba, to.SectorsPerLba);
        ulong count = Math.Max(step, (1UL + _dice.NextBelow(most)) / step * step);
        ulong first = _dice.NextBelow(192UL) / to.SectorsPerLba * to.SectorsPerLba;
        ulong id = world.NextId();
        var data = new byte[count * Units.SectorBytes];
        VolumeModel.Fill(data, id, to.Model.Head.Id, first);
        TaskAnswer written = await AskAsync(session, from, Cdb16(0x8A, from, from.DeskSector(desk), count, 0), 0, data);
        bool hasNames = written.IsGood && await NameAsync(session, from) && await NameAsync(session, to);
        // Whoever does not know what became of it leaves the desk as it is.
        if (written.End == TaskEnd.Answered && !hasNames) from.GiveDesk(desk);
        if (!hasNames) return;

        byte listId = (byte)id;
        byte[] list = ListOf(listId, from, to, from.DeskSector(desk), first, count);
        var cdb = new byte[16];
        cdb[0] = 0x83;
        BinaryPrimitives.WriteUInt32BigEndian(cdb.AsSpan(10), (uint)list.Length);
        ModelWrite write = world.BeginWrite(to, first, count, isZero: false, id);
        ulong begun = world.Tick();
        TaskAnswer answer = await ChangeAsync(
            session, asked, cdb, list, [write], false, SessionDid.Copies, changed: to,
            explains: (a, start, end) => a is { Key: 0x0A, Code: NotReachable } ? from.MayRefuse(start, end) || to.MayRefuse(start, end)
                : a is { Key: 0x0A, Code: DeviceFailure } && (from.HadAborts(start) || to.HadAborts(start)));
        if (answer.End == TaskEnd.Answered) from.GiveDesk(desk);
        if (!answer.IsGood) return;
        if (world.HasFarUnits && from != to) world.Counters[SessionDid.FarCopies]++;
        ulong ended = world.Tick();
        // Held over the whole of it, resends and attentions included: then also over the answered attempt.
        if (to.Reservations.MustRefuse(PortOf(session), true, begun, ended))
            world.Violate(ViolationKind.WrongReservation, $"{_name}: a copy went past the reservation of LUN {to.Lun}");
        if (_dice.NextChance(0.3)) await AskForResultAsync(session, asked, listId);
    }

    /// <summary>It was done, or somebody's copy took its place.</summary>
    private async Task AskForResultAsync(SimSession session, SimUnit asked, byte listId)
    {
        var cdb = new byte[16];
        (cdb[0], cdb[2], cdb[13]) = (0x84, listId, 64);
        TaskAnswer answer = await AskAsync(session, asked, cdb, 64, explains: (a, _, _) => a is { Key: 5, Code: 0x2400 });
        if (answer.IsGood && (answer.DataIn.Length != 12 || answer.DataIn[4] > 2))
            world.Violate(ViolationKind.WrongAnswer, $"RECEIVE COPY STATUS was answered {Convert.ToHexString(answer.DataIn)}");
    }

    /// <summary>Learns the first designator of page 83.</summary>
    private async Task<bool> NameAsync(SimSession session, SimUnit unit)
    {
        if (unit.Designator is not null) return true;
        var inquiry = new byte[16];
        (inquiry[0], inquiry[1], inquiry[2], inquiry[4]) = (0x12, 1, 0x83, 252);
        TaskAnswer answer = await AskAsync(session, unit, inquiry, 252);
        if (!answer.IsGood) return false;
        unit.Designator = answer.DataIn[4..(8 + answer.DataIn[7])];
        return true;
    }

    private static byte[] ListOf(byte id, SimUnit from, SimUnit to, ulong source, ulong target, ulong count)
    {
        var list = new byte[16 + 2 * 32 + 32];
        (list[0], list[3], list[11]) = (id, 64, 32);
        for (int i = 0; i < 2; i++)
        {
            list[16 + 32 * i] = 0xE4;
            (i == 0 ? from : to).Designator!.CopyTo(list, 20 + 32 * i);
        }

        Span<byte> segment = list.AsSpan(80);
        (segment[0], segment[3], segment[7]) = (0x0A, 0x1C, 1);
        BinaryPrimitives.WriteUInt32BigEndian(segment[8..], (uint)(count * Units.SectorBytes));
        BinaryPrimitives.WriteUInt64BigEndian(segment[12..], source / from.SectorsPerLba);
        BinaryPrimitives.WriteUInt64BigEndian(segment[20..], target / to.SectorsPerLba);
        return list;
    }
}
